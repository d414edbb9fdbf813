package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"domfs/testdata/lab/domu/records"
)

// writer writes records, each to the next of its files.
type writer struct {
	files []*os.File
	pace  time.Duration

	mu      sync.Mutex // held while one is written
	changed *sync.Cond // whether it is running
	running bool       // guarded by mu
	next    int        // guarded by mu
}

// newWriter goes on after the records that are there.
func newWriter(paths []string, pace time.Duration) (*writer, error) {
	w := &writer{pace: pace, next: 1}
	w.changed = sync.NewCond(&w.mu)
	for _, path := range paths {
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
		if err != nil {
			return nil, err
		}
		info, err := file.Stat()
		if err != nil {
			return nil, err
		}
		w.next += int(info.Size() / records.LineBytes)
		w.files = append(w.files, file)
		// The file's name is to be there as soon as its first record is.
		if err := syncDir(filepath.Dir(path)); err != nil {
			return nil, err
		}
	}
	go w.write()
	return w, nil
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// setRunning returns when a record that is being written is.
func (w *writer) setRunning(running bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running = running
	w.changed.Broadcast()
}

func (w *writer) write() {
	for ; ; time.Sleep(w.pace) {
		if err := w.one(); err != nil {
			say("error %v", err)
			return
		}
	}
}

func (w *writer) one() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for !w.running {
		w.changed.Wait()
	}
	file := w.files[(w.next-1)%len(w.files)]
	if _, err := file.Write(records.Line(w.next)); err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return err
	}
	say("synced %d", w.next)
	w.next++
	return nil
}

// obey does what the lines of the console say.
func obey(in io.Reader, w *writer) {
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		id, command, found := strings.Cut(strings.TrimSpace(lines.Text()), " ")
		if !found {
			continue
		}
		status := 0
		switch command {
		case "idle":
			w.setRunning(false)
		case "go":
			w.setRunning(true)
		default:
			status = shell(id, command)
		}
		say("done %s %d", id, status)
	}
	say("error %v", fmt.Errorf("the console's input ended: %v", lines.Err()))
}
