package vfs

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"domfs/backend"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// pushRig has a snapshot "s" of web01.
func pushRig(t *testing.T) (r *rig, files string) {
	r = newRig(t)
	r.mkdir("snapshots", "web01", "s")
	return r, r.path("snapshots", "web01", "s", "disks", "xvda", "p1", "files")
}

// slotOf is the slot of the only filesystem in use.
func (r *rig) slotOf() *slot {
	r.srv.fs.slots.mu.RLock()
	defer r.srv.fs.slots.mu.RUnlock()
	return r.srv.fs.slots.slots[0]
}

// open closes the file at the test's end, and waits until the daemon knows.
func (r *rig) open(path string) *os.File {
	r.t.Helper()
	f, err := os.Open(path)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		f.Close()
		r.allReleased()
	})
	return f
}

func (r *rig) allReleased() {
	eventually(r.t, "the files' release", func() bool { return r.srv.fs.stats()["fuse_open_files"] == 0 })
}

func TestPush_SmallFilesOfASnapshotNeedNoRead(t *testing.T) {
	r, files := pushRig(t)
	for _, test := range []struct {
		path, want string
		flags      int
		reads      bool
	}{
		{files + "/etc/hostname", "web01\n", 0, false},
		{files + "/hard/one", "linked\n", 0, false},
		{files + "/etc/three", "linked\n", 0, false}, // the same inode: pushed before
		{files + "/data/big", string(pattern(3*MiB+123, 1)), 0, true},
		{r.path("xenstore", "web01", "disks", "xvda", "p1", "files", "etc", "hostname"), "web01\n", 0, true},
	} {
		f, err := os.Open(test.path)
		if err != nil {
			t.Fatal(err)
		}
		before := r.srv.fs.ops.Load()
		buf := make([]byte, len(test.want))
		if _, err := io.ReadFull(f, buf); err != nil || string(buf) != test.want {
			t.Errorf("%s: other bytes than the guest's (%v)", test.path, err)
		}
		if reads := r.srv.fs.ops.Load() > before; reads != test.reads {
			t.Errorf("%s: requests while it was read: %v, want %v", test.path, reads, test.reads)
		}
		if n, err := f.Read(buf); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("%s: %d bytes after its end (%v)", test.path, n, err)
		}
		f.Close()
		r.allReleased()
	}
}

func TestPush_WhatTheKernelDropsIsReadAgain(t *testing.T) {
	r, files := pushRig(t)
	f := r.open(files + "/hard/one")
	for range 3 {
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		if n, err := f.ReadAt(buf, 0); string(buf[:n]) != "linked\n" || !errors.Is(err, io.EOF) {
			t.Fatalf("%q (%v)", buf[:n], err)
		}
	}
}

// Readers hold pages locked until they are answered, while others' opens push to the same pages.
func TestPush_DoesNotWaitForReadersThatWaitForUs(t *testing.T) {
	r, files := pushRig(t)
	const workers = 12
	end := time.Now().Add(2 * time.Second)
	finished := make(chan error, workers)
	var begin sync.WaitGroup
	begin.Add(1)
	for range workers {
		go func() {
			begin.Wait()
			buf := make([]byte, 100)
			for time.Now().Before(end) {
				f, err := os.Open(files + "/hard/one")
				if err != nil {
					finished <- err
					return
				}
				n, err := f.ReadAt(buf, 0)
				// Gone from the cache, and not taken for pushed: the next one pushes again.
				unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
				r.slotOf().pushed.clear()
				f.Close()
				if !bytes.Equal(buf[:n], []byte("linked\n")) || !errors.Is(err, io.EOF) {
					finished <- errors.New("other bytes than the guest's: " + string(buf[:n]))
					return
				}
			}
			finished <- nil
		}()
	}
	begin.Done()
	for range workers {
		select {
		case err := <-finished:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("a reader hangs")
		}
	}
	r.allReleased()
}

func TestPushedSet_KnowsWhatWasAdded(t *testing.T) {
	var p pushedSet
	if !p.add(12) || p.add(12) {
		t.Error("an inode is new once")
	}
	if !p.add(13) {
		t.Error("its neighbour is another one")
	}
	if p.add(12 + 1<<pushedBits) {
		t.Error("one that shares the bit is not taken for pushed")
	}
	p.remove(12)
	if !p.add(12) {
		t.Error("an inode that was removed is not new")
	}
	for ino := range uint64(1<<(pushedBits-1) + 1) {
		p.add(ino + 1000)
	}
	if !p.add(1000) {
		t.Error("a set that was half full still holds its first inode")
	}
}

var _ backend.File = (*countingFile)(nil)

// countingFile counts reads of its content.
type countingFile struct {
	*bytes.Reader
	reads int
}

func (c *countingFile) Close() error { return nil }

func (c *countingFile) ReadAt(p []byte, off int64) (int, error) {
	c.reads++
	return c.Reader.ReadAt(p, off)
}

func TestPush_IsBoundedInMemory(t *testing.T) {
	r, _ := pushRig(t)
	f := r.srv.fs
	var held [][]byte
	for range maxPushes {
		held = append(held, <-f.pusher.buffers)
	}
	file := &countingFile{Reader: bytes.NewReader([]byte("content"))}
	s := &slot{}
	f.push(s, &fuse.OpenIn{}, 1, file)
	if file.reads != 0 {
		t.Error("more pushes than may be")
	}
	for _, b := range held {
		f.pusher.buffers <- b
	}
	if !s.pushed.add(1) {
		t.Error("a file that was not pushed is taken for pushed")
	}
}

func TestPush_TellsTheKernelNothingOfAFileThatCannotBeRead(t *testing.T) {
	r, files := pushRig(t)
	f := r.open(files + "/hard/one")
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	s := r.slotOf()
	guest, err := s.vol.Load().FS(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	attr, err := guest.Lookup(guest.Root(), "hard")
	if err == nil {
		attr, err = guest.Lookup(attr.Ino, "one")
	}
	if err != nil {
		t.Fatal(err)
	}
	in := &fuse.OpenIn{}
	if in.NodeId, err = s.nodeID(attr.Ino); err != nil {
		t.Fatal(err)
	}
	s.pushed.clear()
	r.srv.fs.push(s, in, attr.Ino, &shortFile{bytes.NewReader([]byte("wrong!\n"))})
	buf := make([]byte, 100)
	if n, _ := f.ReadAt(buf, 0); string(buf[:n]) != "linked\n" {
		t.Errorf("%q was pushed", buf[:n])
	}
	if n := len(r.srv.fs.pusher.buffers); n != maxPushes {
		t.Errorf("%d buffers, want %d", n, maxPushes)
	}
}

// shortFile fails after its third byte.
type shortFile struct{ *bytes.Reader }

func (s *shortFile) Close() error { return nil }

func (s *shortFile) ReadAt(p []byte, off int64) (int, error) {
	n, _ := s.Reader.ReadAt(p[:min(3, len(p))], off)
	return n, backend.ErrIO
}
