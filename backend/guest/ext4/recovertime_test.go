package ext4

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"
)

// allAttrs is what stat(2) says of everything below a directory.
func allAttrs(t testing.TB, fs *FS, dir uint64, into map[uint64]backend.Attr) map[uint64]backend.Attr {
	t.Helper()
	var below []uint64
	must(t, fs.ReadDir(dir, 0, true, func(e *backend.DirEntry) bool {
		if e.Attr == nil {
			t.Fatalf("inode %d has no Attr", e.Ino)
		}
		if _, seen := into[e.Ino]; !seen && e.Attr.Type == backend.TypeDir {
			below = append(below, e.Ino)
		}
		into[e.Ino] = *e.Attr
		return true
	}))
	for _, ino := range below {
		allAttrs(t, fs, ino, into)
	}
	return into
}

// A backup tool takes a directory with another time for one that has changed.
func TestRecover_ShowsTheSameWheneverItOpens(t *testing.T) {
	testneed.Loop(t)
	testneed.Tools(t, "mke2fs", "mkfs.xfs")
	image := filepath.Join(reflinkDir(t), "image")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 32*mib))
	command(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-O", "fast_commit", "-J", "size=4", image)
	start := time.Now().Add(-20 * time.Millisecond) // the kernel's clock for times goes by ticks
	dir, umount := mount(t, image, "rw,commit=100")
	must(t, os.Mkdir(filepath.Join(dir, "d"), 0o700))
	closeAll := orphans(t, dir)
	for _, name := range []string{"new", "d/new"} {
		f, err := os.Create(filepath.Join(dir, name))
		must(t, err)
		must(t, f.Sync())
		must(t, f.Close())
	}
	end := time.Now()
	cut := clone(t, image, image+".cut")
	closeAll()
	umount()

	first, _ := openImage(t, cut)
	second, _ := openImage(t, cut)
	if w := first.Warnings(); len(w) != 0 || !slices.Equal(w, second.Warnings()) {
		t.Errorf("warnings: %q, %q", w, second.Warnings())
	}
	if len(first.over.replayed) == 0 || first.fastCommits[fcCreate] != 2 || len(first.over.edited) < 5 {
		t.Errorf("%d blocks, tags %v, %d edited blocks", len(first.over.replayed), first.fastCommits, len(first.over.edited))
	}
	if !slices.Equal(first.over.replayed, second.over.replayed) {
		t.Error("the blocks of the log differ")
	}
	if !maps.EqualFunc(first.over.edited, second.over.edited, bytes.Equal) {
		t.Error("the blocks that were changed in memory differ")
	}
	if a, b := allAttrs(t, first, rootIno, map[uint64]backend.Attr{}), allAttrs(t, second, rootIno, map[uint64]backend.Attr{}); len(a) < 10 || !maps.Equal(a, b) {
		t.Errorf("%+v, and then %+v", a, b)
	}
	// The time is that of the last fast commit, and all that the replay has touched has it.
	at := first.recoveryTime()
	if at.Before(start) || at.After(end) || at.Before(first.lastWrite) {
		t.Errorf("%v, where the guest wrote from %v to %v", at, start, end)
	}
	if m := lookup(t, first, "d").Mtime; m.Sec != at.Unix() || int(m.Nsec) != at.Nanosecond() {
		t.Errorf("a directory of the time %+v, not %v", m, at)
	}
	c := lookup(t, first, "d", "new").Ctime
	if made := time.Unix(c.Sec, int64(c.Nsec)); made.After(at) || at.Sub(made) > time.Second {
		t.Errorf("made at %v, recovered to %v", made, at)
	}
}

func TestRecoveryTime_IsTheLatestThatCanBe(t *testing.T) {
	for _, c := range []struct {
		written   int64
		sec, nsec uint64
		want      time.Time
	}{
		{0, 0, 0, time.Unix(0, 0)},
		{100, 0, 0, time.Unix(100, 0)},
		{100, 100, 5, time.Unix(100, 5)},
		{100, 99, 5, time.Unix(100, 0)},
		{100, maxInodeSeconds, nsecMax, time.Unix(maxInodeSeconds, nsecMax)},
		{100, maxInodeSeconds + 1, 0, time.Unix(100, 0)},
		{100, 1 << 63, 0, time.Unix(100, 0)},
		{100, 200, nsecMax + 1, time.Unix(100, 0)},
		{1<<40 - 1, 0, 0, time.Unix(maxInodeSeconds, 0)},
	} {
		fs := &FS{sb: &super{written: c.written}}
		fs.wroteAt(c.sec, c.nsec)
		if got := fs.recoveryTime(); !got.Equal(c.want) {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
