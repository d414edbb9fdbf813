package ext4

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest/fstree"
	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

// dirtyImage is an image whose journal has something to replay: a file "file" that is nowhere else.
func dirtyImage(t testing.TB, args ...string) string {
	t.Helper()
	path := mkfs(t, 32, false, append([]string{"-t", "ext4"}, args...)...)
	dir, umount := mount(t, path, "rw")
	must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o600))
	syncFS(t, dir)
	dirty := copyFile(t, path)
	umount()
	return dirty
}

// journalSuperAt is the offset of the journal's superblock in an image.
func journalSuperAt(t testing.TB, image []byte) int {
	t.Helper()
	fs, err := New().Open(inMemory(image))
	must(t, err)
	x := fs.(*FS)
	var in inode
	must(t, x.readInode(x.sb.journalIno, &in))
	r, err := x.mapRun(&in, 0)
	must(t, err)
	return int(r.phys << x.sb.blockBits)
}

// What the kernel refuses in a journal's superblock is not replayed, and what it
// mounts is.
func TestRecover_ReadsJournalSuperblocksAsTheKernelDoes(t *testing.T) {
	testneed.Loop(t)
	path := dirtyImage(t, "-b", "1024", "-J", "size=1")
	good := mustRead(t, path)
	at := journalSuperAt(t, good)
	for _, v := range []struct {
		name  string
		field int
		value uint32
		warns string // "" where the kernel mounts
	}{
		{"as it is", 0x20, 0, ""},
		{"magic", 0x0, 0x12345678, "magic is 0x12345678"},
		{"type", 0x4, journalDescriptor, "block type 1"},
		{"block size", 0xc, 4096, "block size is 4096"},
		{"longer than its file", 0x10, 1025, "1025 blocks in a file of 1024"},
		{"short", 0x10, 1023, "the log is from block 1 of 1023"},
		{"no length", 0x10, 0, "the log is from block 1 of 0"},
		{"the log from the superblock on", 0x14, 0, "the log is from block 0"},
		{"the log from its end on", 0x14, 1024, "the log is from block 1024"},
		{"the log from far on", 0x14, 0xffffffff, "the log is from block"},
		{"the first transaction past the end", 0x1c, 1024, "the first transaction is at block 1024"},
		{"the first transaction far", 0x1c, 0xffffffff, "the first transaction is at block"},
		{"no transaction", 0x1c, 0, ""},
		{"another sequence", 0x18, 77777, ""},
		{"an unknown compatible feature", 0x24, 0x80, ""},
		{"an unknown incompatible feature", 0x28, 0x40 | journalIncompatChecksumV3, "unknown features, incompatible 0x40"},
		{"an unknown read-only compatible feature", 0x2c, 0x1, "read-only compatible 0x1"},
		{"versions 2 and 3", 0x28, journalIncompatChecksumV2 | journalIncompatChecksumV3, "several versions"},
		{"versions 1 and 3", 0x24, journalCompatChecksum, "several versions"},
		{"checksum type", 0x50, 0x01000000, "checksum type 1"},
		{"many users", 0x40, 0xffffffff, ""},
	} {
		t.Run(v.name, func(t *testing.T) {
			b := append([]byte(nil), good...)
			binary.BigEndian.PutUint32(b[at+v.field:], v.value)
			sealJournalSuper(b[at:])
			checkSuper(t, b, v.warns)
		})
	}
	t.Run("checksum", func(t *testing.T) {
		b := append([]byte(nil), good...)
		b[at+0xfc] ^= 1
		checkSuper(t, b, "journal superblock: checksum is 0x")
	})
}

// checkSuper compares an image with the kernel's mount, which is refused where there is a
// warning.
func checkSuper(t *testing.T, image []byte, warns string) {
	t.Helper()
	path := filepath.Join(imageDir(t), "image")
	must(t, os.WriteFile(path, image, 0o600))
	fs, err := New().Open(inMemory(image))
	must(t, err)
	if w := fs.Warnings(); warns == "" && len(w) > 0 || warns != "" && (len(w) != 1 || !strings.Contains(w[0], warns)) {
		t.Errorf("warnings: %q", w)
	}
	dir, umount, err := mountRecovering(t, path, "ro")
	if (err == nil) != (warns == "") {
		t.Fatalf("the kernel's mount: %v", err)
	}
	if err != nil {
		dir, umount, err = mountRecovering(t, path, "ro,noload")
		must(t, err)
	}
	defer umount()
	fstree.Compare(t, fs, dir)
}

func TestRecover_FindsTheJournalByTheSuperblocksCopy(t *testing.T) {
	for _, args := range [][]string{{"-b", "1024"}, {"-O", "^extents,^64bit,^metadata_csum"}} {
		path := dirtyImage(t, args...)
		debugfs(t, path, "clri <8>")
		fs, _ := openImage(t, path)
		if w := fs.Warnings(); len(w) != 1 || !strings.Contains(w[0], "the superblock's copy") {
			t.Errorf("%q: warnings: %q", args, w)
		}
		lookup(t, fs, "file")

		debugfs(t, path, "set_super_value jnl_blocks[0] 0", "set_super_value jnl_blocks[5] 0")
		fs, _ = openImage(t, path)
		if w := fs.Warnings(); len(w) != 1 || !strings.Contains(w[0], "the journal was not replayed: the journal's inode 8") {
			t.Errorf("%q, without the copy: warnings: %q", args, w)
		}
	}
}

func TestRecover_RefusesJournalsOnOtherDevices(t *testing.T) {
	testneed.Loop(t)
	journal := mkfs(t, 8, false, "-O", "journal_dev", "-b", "4096")
	loop := strings.TrimSpace(command(t, "losetup", "--find", "--show", journal))
	t.Cleanup(func() { command(t, "losetup", "-d", loop) })
	path := mkfs(t, 32, false, "-t", "ext4", "-b", "4096", "-J", "device="+loop)
	if fs, _ := openImage(t, path); len(fs.Warnings()) != 0 {
		t.Errorf("clean: warnings: %q", fs.Warnings())
	}
	dir, umount := mount(t, path, "rw,journal_path="+loop)
	must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o600))
	syncFS(t, dir)
	dirty := copyFile(t, path)
	umount()
	if _, err := New().Open(openDevice(t, dirty)); !errors.Is(err, backend.ErrUnsupported) || !strings.Contains(err.Error(), "another device") {
		t.Errorf("in use: %v", err)
	}
}

func TestRecover_WarnsOfErrorsThatTheKernelHadFound(t *testing.T) {
	image := logImage(t)
	w := newLogWriter(t, image, logFormats[1])
	w.write(w.fill(0, 'A'))
	binary.BigEndian.PutUint32(w.block(0)[0x20:], uint32(0xffffffff-4)) // -EIO
	fs, err := New().Open(inMemory(w.finish()))
	must(t, err)
	if got := fs.Warnings(); len(got) == 0 || !strings.Contains(got[0], "error -5") {
		t.Errorf("warnings: %q", got)
	}
	if got := targetIs(t, fs.(*FS)); got[0] != 'A' {
		t.Error("the log was not replayed")
	}
}

func TestRecover_WarnsOfAJournalThatIsMissing(t *testing.T) {
	path := mkfs(t, 16, false, "-t", "ext4", "-O", "^has_journal,^metadata_csum")
	b := mustRead(t, path)
	b[superOffset+0x60] |= incompatRecover
	fs, err := New().Open(inMemory(b))
	must(t, err)
	if got := fs.Warnings(); len(got) != 1 || !strings.Contains(got[0], "has none") {
		t.Errorf("warnings: %q", got)
	}
}

// failingJournal is a device whose reads fail where the journal lies.
type failingJournal struct {
	memory
	from, to int64
	err      error
}

func (f failingJournal) ReadAt(p []byte, off int64) (int, error) {
	if off < f.to && off+int64(len(p)) > f.from {
		return 0, f.err
	}
	return f.memory.ReadAt(p, off)
}

// A device that cannot be read may be readable later: that is no state of the filesystem
// to warn of.
func TestRecover_FailsWhereTheDeviceDoes(t *testing.T) {
	w := newLogWriter(t, logImage(t), logFormats[1])
	w.write(w.fill(0, 'A'))
	image := w.finish()
	for block, fails := range []bool{true, true, false, true, true, false, false} {
		phys, _ := w.j.phys(uint32(block))
		at := int64(phys) << 10
		d := failingJournal{inMemory(image).(memory), at, at + 1, unix.EIO}
		fs, err := New().Open(d)
		if fails != errors.Is(err, unix.EIO) || fails != (err != nil) {
			t.Errorf("block %d of the journal: %v", block, err)
		} else if !fails && len(fs.Warnings()) > 0 {
			t.Errorf("block %d of the journal: warnings: %q", block, fs.Warnings())
		}
	}
}

// A filesystem that has been made larger has the larger superblock in its journal first.
func TestRecover_ReadsTheSuperblockThatTheJournalHolds(t *testing.T) {
	testneed.Tools(t, "resize2fs", "e2fsck")
	source := imageDir(t)
	must(t, os.WriteFile(filepath.Join(source, "target"), bytes.Repeat([]byte{targetByte}, targetBlocks<<10), 0o644))
	path := mkfs(t, 8, false, "-t", "ext4", "-b", "1024", "-J", "size=1", "-N", "64", "-O", "^metadata_csum", "-d", source)
	must(t, os.Truncate(path, 24*mib))
	small := mustRead(t, path)
	command(t, "resize2fs", path, "24M")
	large := mustRead(t, path)

	w := newLogWriter(t, small, logFormats[2])
	var list []copied
	for at := 0; at < len(small); at += 1 << 10 {
		if block := uint64(at >> 10); !bytes.Equal(small[at:at+1<<10], large[at:at+1<<10]) && !w.j.owns(block) {
			list = append(list, copied{block: block, data: bytes.Clone(large[at : at+1<<10])})
		}
		if len(list) == 50 {
			w.descriptor(list...)
			list = nil
		}
	}
	w.descriptor(append(list, w.fill(0, 'A'))...)
	w.commit()
	must(t, os.WriteFile(path, w.finish(), 0o600))
	fs, _ := openImage(t, path)
	if got := fs.Warnings(); len(got) != 0 {
		t.Errorf("warnings: %q", got)
	}
	if fs.sb.blocks != 24<<10 || targetIs(t, fs)[0] != 'A' {
		t.Errorf("%d blocks, the target is %q", fs.sb.blocks, targetIs(t, fs))
	}

	// The kernel reads the superblock only before it replays: with the next mount it has the new one.
	kernel := copyFile(t, path)
	_, umount, err := mountRecovering(t, kernel, "ro")
	must(t, err)
	umount()
	dir, umount, err := mountRecovering(t, kernel, "ro")
	must(t, err)
	defer umount()
	fstree.Compare(t, fs, dir)
}

func TestReplay_LeavesOutTheJournalsOwnBlocks(t *testing.T) {
	image := logImage(t)
	for _, f := range logFormats {
		w := newLogWriter(t, image, f)
		own := w.fill(1, 'B')
		own.block, _ = w.j.phys(w.j.last - 1)
		w.write(w.fill(0, 'A'), own, w.fill(2, 'C'))
		fs, err := New().Open(inMemory(w.finish()))
		must(t, err)
		if got := fs.Warnings(); len(got) != 1 || !strings.Contains(got[0], "the journal's own") {
			t.Errorf("%s: warnings: %q", f.name, got)
		}
		if got := targetIs(t, fs.(*FS)); got[:3] != "A.C" {
			t.Errorf("%s: the target is %q", f.name, got)
		}
	}
}

// The kernel would go round forever.
func TestReplay_EndsWhereTheLogDoesNot(t *testing.T) {
	image := logImage(t)
	for _, f := range logFormats {
		w := newLogWriter(t, image, f)
		w.write(w.fill(0, 'A'))
		for w.at != w.start {
			w.revoke(w.target[1])
		}
		// The first transaction, too, now is one of the revokes that go on.
		w.at = w.start
		w.first = w.tid
		w.revoke(w.target[1])
		w.revoke(w.target[1])
		w.revoke(w.target[1])
		fs, err := New().Open(inMemory(w.finish()))
		must(t, err)
		if got := fs.Warnings(); len(got) != 1 || !strings.Contains(got[0], "the log has no end") {
			t.Errorf("%s: warnings: %q", f.name, got)
		}
		if got := targetIs(t, fs.(*FS)); got[0] != targetByte {
			t.Errorf("%s: the target is %q", f.name, got)
		}
	}
}

// A superblock in the log is taken like any other block: one that cannot be is refused, and
// nothing replayed.
func TestReplay_RefusesSuperblocksThatCannotBe(t *testing.T) {
	image := logImage(t)
	for _, v := range []struct {
		name  string
		at    int
		value byte
		warns string
	}{
		{"magic", 0x38, 0, "magic is"},
		{"another block size", 0x18, 1, "superblock with blocks of 2048 bytes"},
	} {
		w := newLogWriter(t, image, logFormats[1])
		super := copied{block: 1, data: append([]byte(nil), w.image[1<<10:2<<10]...)}
		super.data[0x60] |= incompatRecover
		super.data[v.at] = v.value
		if v.at == 0x18 {
			super.data[0x14], super.data[0x1c] = 0, v.value
		}
		w.write(w.fill(0, 'A'), super)
		fs, err := New().Open(inMemory(w.finish()))
		must(t, err)
		if got := fs.Warnings(); len(got) != 1 || !strings.Contains(got[0], v.warns) {
			t.Errorf("%s: warnings: %q", v.name, got)
		}
		if got := targetIs(t, fs.(*FS)); got[0] != targetByte {
			t.Errorf("%s: the target is %q", v.name, got)
		}
	}
}
