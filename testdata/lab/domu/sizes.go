package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const sizesEvery = 250 * time.Millisecond

// sizes are the guest's disks as the kernel knows them; no disk is asked for anything. What is looked at four times a second stays open: to find it anew
// costs an emulated processor a sixth of its time.
type sizes struct {
	dir   *os.File // the kernel's list of block devices
	disks map[string]*disk
}

// disk is one that is there.
type disk struct {
	size *os.File // in sectors of 512 bytes, as a line
	said string
}

func newSizes(dir string) (*sizes, error) {
	file, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	return &sizes{dir: file, disks: map[string]*disk{}}, nil
}

func (s *sizes) watch() {
	for ; ; time.Sleep(sizesEvery) {
		if err := s.look(); err != nil {
			say("error %v", err)
			return
		}
	}
}

// look tells what has changed since the last look.
func (s *sizes) look() error {
	if _, err := s.dir.Seek(0, io.SeekStart); err != nil {
		return err
	}
	names, err := s.dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, known := s.disks[name]; known || !strings.HasPrefix(name, "xvd") {
			continue
		}
		if size, err := os.Open(filepath.Join(s.dir.Name(), name, "size")); err == nil {
			s.disks[name] = &disk{size: size}
		}
	}
	for name, disk := range s.disks {
		size, err := disk.read()
		switch {
		case err != nil || !slices.Contains(names, name): // a disk of that name that came since is told of at the next look
			disk.size.Close()
			delete(s.disks, name)
			say("size %s gone", name)
		case size != disk.said:
			disk.said = size
			say("size %s %s", name, size)
		}
	}
	return nil
}

// read fails where the disk has gone.
func (d *disk) read() (string, error) {
	var line [32]byte
	n, err := d.size.ReadAt(line[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return strings.TrimSpace(string(line[:n])), nil
}
