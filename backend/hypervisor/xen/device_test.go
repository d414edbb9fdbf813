package xen

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestIsLoopOf_GoesByTheBackingFile(t *testing.T) {
	dir := t.TempDir()
	file, link, other := filepath.Join(dir, "a.img"), filepath.Join(dir, "link.img"), filepath.Join(dir, "b.img")
	for _, path := range []string{file, other} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	d := &Driver{sysfs: filepath.Join(dir, "sys")}
	loop := filepath.Join(d.sysfs, "dev/block/7:3/loop")
	if err := os.MkdirAll(loop, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		backing, path string
		number        uint64
		want          bool
	}{
		{file, file, unix.Mkdev(7, 3), true},
		{file, link, unix.Mkdev(7, 3), true},
		{file, other, unix.Mkdev(7, 3), false},
		{file + " (deleted)", file, unix.Mkdev(7, 3), false},
		{file, filepath.Join(dir, "none"), unix.Mkdev(7, 3), false},
		{file, file, unix.Mkdev(7, 4), false},
		{file, file, unix.Mkdev(253, 3), false},
	} {
		if err := os.WriteFile(filepath.Join(loop, "backing_file"), []byte(c.backing+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := d.isLoopOf(c.path, c.number); got != c.want {
			t.Errorf("device %d:%d of %s is one of %s: %t", unix.Major(c.number), unix.Minor(c.number), c.backing, c.path, got)
		}
	}
}
