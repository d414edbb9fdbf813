package image

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"domfs/backend/backendtest/loop"

	"golang.org/x/sys/unix"
)

// usedNow is the UsedBytes of the only snapshot, looked at anew.
func usedNow(t *testing.T, s *Store) int64 {
	t.Helper()
	s.mu.Lock()
	for version, u := range s.usages {
		if !u.due.IsZero() {
			u.due = time.Unix(1, 0)
			s.usages[version] = u
		}
	}
	s.mu.Unlock()
	return usedCached(t, s)
}

func usedCached(t *testing.T, s *Store) int64 {
	t.Helper()
	snaps, err := s.Snapshots(t.Context())
	if err != nil || len(snaps) != 1 || snaps[0].Volume.Err != nil {
		t.Fatalf("Snapshots = %+v, %v", snaps, err)
	}
	return snaps[0].UsedBytes
}

func TestSnapshots_CountsWhatACloneHoldsAlone(t *testing.T) {
	for name, folder := range map[string]string{
		"xfs":   mountedXFS(t),
		"btrfs": mounted(t, 256<<20, "mkfs.btrfs", "-q"),
	} {
		t.Run(name, func(t *testing.T) {
			const piece = 8 << 20
			path := filepath.Join(folder, "web-01.img")
			var pieces [4][]byte
			for i := range pieces {
				pieces[i] = bytes.Repeat([]byte(fmt.Sprint(i)), piece)
			}
			// Each is synchronised, so that it has extents of its own.
			write := func(i int) {
				t.Helper()
				f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if _, err := f.WriteAt(pieces[i], int64(i)*piece); err != nil {
					t.Fatal(err)
				}
				if err := f.Sync(); err != nil {
					t.Fatal(err)
				}
			}
			for i := range pieces {
				write(i)
			}
			s := New([]string{folder}, nil, nil)
			snap := mustActive(t, s, path, "set1")
			if snap.UsedBytes != 0 {
				t.Errorf("Snapshot says that %d bytes are held", snap.UsedBytes)
			}
			var st unix.Stat_t
			if err := unix.Stat(snap.Volume.ID, &st); err != nil || st.Blocks*512 < 4*piece {
				t.Fatalf("the copy has %d blocks (%v): this test shows nothing", st.Blocks, err)
			}
			const slack = 256 << 10 // blocks of metadata
			if got := usedNow(t, s); got > slack {
				t.Errorf("%d bytes are held right after the clone, want none", got)
			}
			write(1)
			if name == "btrfs" {
				loop.Command(t, "sync", "-f", folder) // what it shared is known once it is committed
			}
			if got := usedCached(t, s); got > slack {
				t.Errorf("%d bytes at once: it was looked at again too soon", got)
			}
			if got := usedNow(t, s); got < piece || got > piece+slack {
				t.Errorf("%d bytes are held after %d were overwritten", got, piece)
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			loop.Command(t, "sync", "-f", folder)
			for start := time.Now(); ; time.Sleep(50 * time.Millisecond) {
				got := usedNow(t, s)
				if got >= 4*piece && got <= 4*piece+slack {
					break
				}
				if time.Since(start) > 10*time.Second {
					t.Fatalf("%d bytes are held after the image was removed, want all %d", got, 4*piece)
				}
			}
		})
	}
}

func TestSnapshots_LooksAtFewCopiesAtOnce(t *testing.T) {
	folder := mountedXFS(t)
	path := filepath.Join(folder, "web-01.img")
	sparseImage(t, path, 1<<20, 0)
	s := New([]string{folder}, nil, nil)
	const count = 3
	for i := range count {
		mustActive(t, s, path, fmt.Sprint("set", i))
	}
	look := func() (known int) {
		t.Helper()
		snaps, err := s.Snapshots(t.Context())
		if err != nil || len(snaps) != count {
			t.Fatalf("Snapshots = %+v, %v", snaps, err)
		}
		for _, snap := range snaps {
			if snap.UsedBytes == 0 {
				known++
			}
		}
		return known
	}
	s.usageBudget = 0
	for want := 1; want <= count; want++ {
		if got := look(); got != want {
			t.Errorf("%d copies are known after %d listings without any budget", got, want)
		}
	}
	clear(s.usages)
	s.usageBudget = time.Minute
	if got := look(); got != count {
		t.Errorf("%d of %d copies are known after one listing", got, count)
	}
}

func TestSnapshots_LooksAtACopyThatSharesNothingOnce(t *testing.T) {
	folder := mountedExt4(t, 64<<20)
	path := filepath.Join(folder, "web-01.img")
	sparseImage(t, path, 1<<20, 0)
	s := New([]string{folder}, nil, nil)
	mustActive(t, s, path, "set1")
	if got := usedCached(t, s); got < 64<<10 {
		t.Errorf("%d bytes are held by a copy of 64 KiB", got)
	}
	if len(s.usages) != 1 {
		t.Fatalf("%d copies are known, want 1", len(s.usages))
	}
	for _, u := range s.usages {
		if !u.due.IsZero() {
			t.Errorf("it is looked at again at %s", u.due)
		}
	}
}
