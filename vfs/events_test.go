package vfs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

func openEvents(t *testing.T, r *rig, flags int) int {
	t.Helper()
	fd, err := unix.Open(r.path(".domfs/events"), unix.O_RDONLY|flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func readEvents(fd, size int) func() string {
	return func() string {
		buf := make([]byte, size)
		n, err := unix.Read(fd, buf)
		if err != nil {
			return err.Error()
		}
		return string(buf[:n])
	}
}

func TestEvents_StreamOneObjectALineAndBlock(t *testing.T) {
	r := newRig(t)
	fd := openEvents(t, r, 0)
	defer unix.Close(fd)
	got := async(readEvents(fd, 4096))
	stillWaits(t, "a read of events", got)
	r.mkdir("snapshots/web01/one")
	line := receive(t, "the read", got)
	var e struct {
		Time                    time.Time
		Event, Domain, Snapshot string
		Took                    float64 `json:"took_seconds"`
	}
	if err := json.Unmarshal([]byte(line), &e); err != nil || !strings.HasSuffix(line, "}\n") || strings.Count(line, "\n") != 1 {
		t.Fatalf("%q: %v", line, err)
	}
	if e.Event != "snapshot" || e.Domain != "web01" || e.Snapshot != "one" || time.Since(e.Time) > time.Minute {
		t.Errorf("the event is %+v", e)
	}
	again := async(readEvents(fd, 4096))
	stillWaits(t, "the next read", again)
	unix.Mkdir(r.path("snapshots/web01/\n"), 0o755)
	if line := receive(t, "the read", again); !strings.Contains(line, `"errno":"EINVAL"`) {
		t.Errorf("a refusal is %s", line)
	}
}

func TestEvents_AnswersEAGAINWithoutBlocking(t *testing.T) {
	r := newRig(t)
	fd := openEvents(t, r, unix.O_NONBLOCK)
	defer unix.Close(fd)
	if _, err := unix.Read(fd, make([]byte, 100)); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("read: %v, want EAGAIN", err)
	}
	r.mkdir("snapshots/web01/one")
	if n, err := unix.Read(fd, make([]byte, 1000)); err != nil || n == 0 {
		t.Errorf("read with an event there: %d, %v", n, err)
	}
}

func TestEvents_EndWithASignalToTheReader(t *testing.T) {
	r := newRig(t)
	sh := startSh(t, `trap 'echo trapped' USR1; exec 3< "$1"; echo open; cat <&3 & wait; kill $!; wait $!; echo end`, r.path(".domfs/events"))
	sh.expect("open")
	time.Sleep(50 * time.Millisecond)
	sh.cmd.Process.Signal(syscall.SIGUSR1)
	sh.expect("trapped")
	sh.until("end")
}

func TestEvents_GiveWholeLinesToSmallBuffersInPieces(t *testing.T) {
	r := newRig(t)
	fd := openEvents(t, r, unix.O_NONBLOCK)
	defer unix.Close(fd)
	r.mkdir("snapshots/web01/one")
	r.rmdir("snapshots/web01/one")
	var all []byte
	for {
		buf := make([]byte, 7)
		n, err := unix.Read(fd, buf)
		if err != nil {
			if !errors.Is(err, unix.EAGAIN) {
				t.Error(err)
			}
			break
		}
		all = append(all, buf[:n]...)
	}
	lines := bytes.Split(bytes.TrimSuffix(all, []byte("\n")), []byte("\n"))
	if len(lines) != 2 || !json.Valid(lines[0]) || !json.Valid(lines[1]) {
		t.Errorf("in pieces: %q", all)
	}
}

func TestEvents_DropTheOldestAndSayHowMany(t *testing.T) {
	r := newRig(t)
	fd := openEvents(t, r, unix.O_NONBLOCK)
	defer unix.Close(fd)
	const more = 37
	for i := range maxEvents + more {
		r.ctl.Failed("web01", "test", fmt.Errorf("number %d: %w", i, backend.ErrIO))
	}
	var all strings.Builder
	buf := make([]byte, 1<<16)
	for {
		n, err := unix.Read(fd, buf)
		if err != nil {
			break
		}
		if buf[n-1] != '\n' {
			t.Error("a read ends within a line")
		}
		all.Write(buf[:n])
	}
	lines := strings.Split(strings.TrimSuffix(all.String(), "\n"), "\n")
	if want := fmt.Sprintf(`{"event":"dropped","dropped":%d}`, more); lines[0] != want {
		t.Errorf("the first line is %s, want %s", lines[0], want)
	}
	if len(lines) != maxEvents+1 || !strings.Contains(lines[1], fmt.Sprintf("number %d:", more)) || !strings.Contains(lines[maxEvents], fmt.Sprintf("number %d:", maxEvents+more-1)) {
		t.Errorf("%d lines, from %s to %s", len(lines), lines[1], lines[len(lines)-1])
	}
}

func TestEvents_EndAtUnmount(t *testing.T) {
	r := newRig(t)
	fd := openEvents(t, r, 0)
	got := async(func() string {
		defer unix.Close(fd)
		return readEvents(fd, 100)()
	})
	stillWaits(t, "the read", got)
	if err := receive(t, "unmounting", async(r.srv.Unmount)); err != nil {
		t.Error(err)
	}
	if s := receive(t, "the read", got); s != "" {
		t.Errorf("the read ended with %q", s)
	}
	if _, err := os.Stat(r.path(".domfs")); err == nil {
		t.Error("it is still mounted")
	}
}
