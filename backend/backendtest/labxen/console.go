package labxen

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Console is all that it has said.
func (d *DomU) Console() string {
	file, err := os.Open(d.log)
	if err != nil {
		return ""
	}
	defer file.Close()
	text, err := io.ReadAll(io.NewSectionReader(file, d.from, 1<<30))
	if err != nil {
		return ""
	}
	return strings.ReplaceAll(string(text), "\r", "")
}

// lines are the values of the whole lines that begin with a word, as they came.
func (d *DomU) lines(word string) []string {
	text := d.Console()
	text = text[:strings.LastIndexByte(text, '\n')+1]
	var found []string
	for line := range strings.Lines(text) {
		if line == word+"\n" {
			found = append(found, "")
		} else if value, ok := strings.CutPrefix(line, word+" "); ok {
			found = append(found, strings.TrimSpace(value))
		}
	}
	return found
}

// Await waits for a line that begins with a word, as words are on its console, and returns the last one's value.
func (d *DomU) Await(word string) string { return d.awaitWithin(sayLimit, word) }

func (d *DomU) awaitWithin(limit time.Duration, word string) string {
	d.t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		if found := d.lines(word); len(found) > 0 {
			return found[len(found)-1]
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("%s does not say %q within %v, but:\n%s", d.Name, word, limit, tail(d.Console(), 30))
		}
	}
}

// Synced is the last record that it says is on its disk; 0 if there is none. Its kernel may say in the middle of such a line that it crashes.
func (d *DomU) Synced() int {
	for _, number := range slices.Backward(d.lines("synced")) {
		if n, err := strconv.Atoi(number); err == nil {
			return n
		}
	}
	return 0
}

// AwaitRecord waits until a record is on its disk.
func (d *DomU) AwaitRecord(number int) {
	d.t.Helper()
	for deadline := time.Now().Add(sayLimit); d.Synced() < number; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			d.t.Fatalf("%s wrote up to record %d within %v, want %d", d.Name, d.Synced(), sayLimit, number)
		}
	}
}

// AwaitSynced waits until so many records more are on its disks.
func (d *DomU) AwaitSynced(more int) {
	d.t.Helper()
	d.AwaitRecord(d.Synced() + more)
}

// SizeBytes is the size of a disk as the guest has it now; -1 if it has none.
func (d *DomU) SizeBytes(vdev string) int64 {
	found := d.lines("size " + vdev)
	if len(found) == 0 || found[len(found)-1] == "gone" {
		return -1
	}
	sectors, err := strconv.ParseInt(found[len(found)-1], 10, 64)
	if err != nil {
		d.t.Fatalf("%s: size %q", d.Name, found[len(found)-1])
	}
	return sectors * 512
}

// AwaitSize waits until a disk has that size for the guest, and tells how long that took; -1 is for none.
func (d *DomU) AwaitSize(vdev string, sizeBytes int64) time.Duration {
	d.t.Helper()
	start := time.Now()
	for d.SizeBytes(vdev) != sizeBytes {
		if time.Since(start) > sayLimit {
			d.t.Fatalf("%s of %s has %d bytes for it after %v, want %d", vdev, d.Name, d.SizeBytes(vdev), sayLimit, sizeBytes)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(start)
}

// Try tells it a command, idle or go or one for its shell, and returns what that says and its status.
func (d *DomU) Try(t testing.TB, command string) (said string, status int) {
	t.Helper()
	id := d.Tell(t, command)
	status, err := strconv.Atoi(d.Await("done " + id))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(d.lines("said "+id), "\n"), status
}

// Do is Try for what must not fail.
func (d *DomU) Do(t testing.TB, command string) string {
	t.Helper()
	said, status := d.Try(t, command)
	if status != 0 {
		t.Fatalf("%s: %s: status %d: %s", d.Name, command, status, said)
	}
	return said
}

// Tell tells it a command, and does not wait for what comes of it: "done ID STATUS" on its console. That is the console of the domain that was
// started, and not of one that was restored from it.
func (d *DomU) Tell(t testing.TB, command string) (id string) {
	t.Helper()
	id = fmt.Sprintf("c%d", d.told.Add(1))
	file, err := os.OpenFile(d.tty, os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteString(id + " " + command + "\n"); err != nil {
		t.Fatal(err)
	}
	return id
}
