package ext4

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"domfs/backend/backendtest/cputime"
	"domfs/backend/backendtest/testneed"
)

// usedLog is the journal's superblock and the blocks of the log that a writer has written.
func (w *logWriter) usedLog() (log []byte) {
	for n := uint32(0); n < w.at; n++ {
		log = append(log, w.block(n)...)
	}
	return log
}

// richLog is a log with something of everything.
func richLog(w *logWriter) {
	w.write(w.fill(0, 'A'), w.fill(1, 'A'), with(w.fill(2, 'A'), jbd2Magic))
	w.descriptor(w.fill(1, 'B'), w.fill(3, 'B'))
	w.descriptor(w.fill(4, 'B'))
	w.revoke(w.target[0], w.target[9])
	w.commit()
	w.write(w.fill(0, 'C'), w.fill(5, 'C'))
	w.descriptor(w.fill(6, 'D'))
}

func TestReplay_SurvivesChangedLogs(t *testing.T) {
	image := logImage(t)
	for _, f := range logFormats {
		t.Run(f.name, func(t *testing.T) {
			w := newLogWriter(t, image, f)
			richLog(w)
			good := w.finish()
			r := rand.New(rand.NewPCG(3, 4))
			differ := 0
			for i := range 60 {
				w.image = bytes.Clone(good)
				for range 1 + i%3 {
					b := w.block(r.Uint32N(w.at))
					at := r.IntN(64)
					switch r.IntN(3) {
					case 0:
						b[at] ^= 1 << r.IntN(8)
					case 1:
						b[at] = byte(r.Uint32())
					case 2:
						binary.BigEndian.PutUint32(b[at&^3:], []uint32{0, 1, 0xffffffff, 0x7fffffff, 0x80000000, r.Uint32(), 1024, jbd2Magic}[r.IntN(8)])
					}
				}
				if i%2 == 0 {
					sealJournalSuper(w.block(0))
				}
				if err := walkBounded(t, i, inMemory(w.image)); err != nil && !knownError(err) {
					t.Errorf("change %d: an error of no kind: %v", i, err)
				}
				fs, err := New().Open(inMemory(w.image))
				must(t, err)
				checkOverlay(t, fs.(*FS), w.j)
				if len(fs.Warnings()) > 0 || targetIs(t, fs.(*FS))[:6] != "CBABBC" {
					differ++
				}
			}
			if differ < 10 {
				t.Errorf("only %d of 60 changes made a difference", differ)
			}
		})
	}
}

// Journals whose inode leads anywhere are refused.
func TestOpenJournal_RefusesMapsThatCannotBe(t *testing.T) {
	path := dirtyImage(t, "-b", "1024", "-J", "size=1", "-O", "^extents,^64bit,^metadata_csum")
	good := mustRead(t, path)
	fs, err := New().Open(inMemory(good))
	must(t, err)
	x := fs.(*FS)
	table, err := x.inodeTable(0)
	must(t, err)
	inode8 := int(table)<<10 + 7*int(x.sb.inodeBytes)
	le := binary.LittleEndian
	pointer := func(b []byte, i int) []byte { return b[inode8+0x28+4*i:] }
	indirect := func(b []byte) []byte { return b[int(le.Uint32(pointer(b, 12)))<<10:] }
	double := func(b []byte) []byte { return b[int(le.Uint32(pointer(b, 13)))<<10:] }
	for _, v := range []struct {
		name   string
		change func(b []byte)
		says   string
	}{
		{"the superblock's block", func(b []byte) { le.PutUint32(pointer(b, 0), 1) }, "is block 1"},
		{"no superblock of a journal", func(b []byte) { le.PutUint32(pointer(b, 0), uint32(table)) }, "magic is"},
		{"a hole first", func(b []byte) { le.PutUint32(pointer(b, 0), 0) }, "block 0 of 1 is not written"},
		{"a hole", func(b []byte) { le.PutUint32(indirect(b)[400:], 0) }, "is not written"},
		{"no indirect blocks", func(b []byte) { le.PutUint32(pointer(b, 13), 0) }, "is not written"},
		{"past the end", func(b []byte) { le.PutUint32(pointer(b, 5), 0xfffffff0) }, "the file's block"},
		{"a block twice", func(b []byte) { copy(indirect(b)[400:], pointer(b, 3)[:4]) }, "are both block"},
		{"an indirect block that is its own", func(b []byte) {
			le.PutUint32(indirect(b), le.Uint32(pointer(b, 12)))
			copy(indirect(b)[4:], indirect(b)[:4])
		}, "are both block"},
		{"a double indirect block that is its own", func(b []byte) { copy(double(b), pointer(b, 13)[:4]) }, "journal"},
		{"a longer file", func(b []byte) { le.PutUint32(b[inode8+0x6c:], 0x7fffffff); b[journalSuperAt(t, good)+0x10] = 0xff }, "is not written"},
		{"a short file", func(b []byte) { le.PutUint32(b[inode8+4:], 1000) }, "1024 blocks in a file of 0"},
		{"a directory", func(b []byte) { le.PutUint16(b[inode8:], 0o40755) }, "is no regular file"},
		{"not in use", func(b []byte) { le.PutUint16(b[inode8+26:], 0) }, "is not in use"},
	} {
		t.Run(v.name, func(t *testing.T) {
			b := bytes.Clone(good)
			b[superOffset+0xfd] = 0 // no copy of the inode
			v.change(b)
			if err := walkBounded(t, v.name, inMemory(b)); err != nil && !knownError(err) {
				t.Error(err)
			}
			fs, err := New().Open(inMemory(b))
			must(t, err)
			if got := fs.Warnings(); len(got) != 1 || !strings.Contains(got[0], "the journal was not replayed: ") || !strings.Contains(got[0], v.says) {
				t.Errorf("warnings: %q", got)
			}
		})
	}
	// Itself the journal of a filesystem: any number leads somewhere.
	for _, ino := range []uint32{1, 2, 3, 7, 11, 12, x.sb.inodes, x.sb.inodes + 1, 0xffffffff} {
		b := bytes.Clone(good)
		b[superOffset+0xfd] = 0
		le.PutUint32(b[superOffset+0xe0:], ino)
		fs, err := New().Open(inMemory(b))
		must(t, err)
		if got := fs.Warnings(); len(got) != 1 || !strings.Contains(got[0], "the journal was not replayed: ") {
			t.Errorf("inode %d: warnings: %q", ino, got)
		}
	}
}

// A log of more than is replayed takes neither memory nor time.
func TestReplay_BoundsMemory(t *testing.T) {
	w := newLogWriter(t, largeLogImage(t, 64, 24), logFormats[1])
	blocks := make([]uint64, (1<<10-revokeHeaderBytes)/4)
	r := rand.New(rand.NewPCG(1, 1))
	w.write(w.fill(0, 'A'))
	for n := 0; n <= maxReplayed; n += len(blocks) {
		for i := range blocks {
			blocks[i] = uint64(r.Uint32())
		}
		w.revoke(blocks...)
	}
	half := bytes.Clone(w.image)
	w.commit()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := cputime.Now()
	fs, err := New().Open(inMemory(w.finish()))
	must(t, err)
	if got := fs.Warnings(); len(got) != 1 || !strings.Contains(got[0], "the log has and revokes more than 4194304 blocks") {
		t.Errorf("warnings: %q", got)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 8*mib {
		t.Errorf("%d bytes were allocated", n)
	}
	if took := start.Used(); took > 5*time.Second {
		t.Errorf("took %v", took)
	}

	// As many as are: one block less.
	w.image = half
	w.at, w.tid = w.at-2, w.tid-1
	w.commit()
	runtime.ReadMemStats(&before)
	fs, err = New().Open(inMemory(w.finish()))
	must(t, err)
	if got := fs.Warnings(); len(got) != 0 || targetIs(t, fs.(*FS))[0] != 'A' {
		t.Errorf("warnings: %q", got)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > maxReplayed*16+8*mib {
		t.Errorf("%d bytes were allocated", n)
	}
	if n := int64(after.HeapAlloc) - int64(before.HeapAlloc); n > 8*mib {
		t.Errorf("%d bytes are kept", n)
	}
	runtime.KeepAlive(fs)
}

// FuzzJournal gives the blocks of a journal from its superblock on.
func FuzzJournal(f *testing.F) {
	image := logImage(f)
	base := newLogWriter(f, image, logFormats[1])
	base.finish()
	for _, format := range logFormats {
		w := newLogWriter(f, image, format)
		richLog(w)
		w.finish()
		f.Add(w.usedLog())
	}
	if os.Geteuid() == 0 {
		f.Add(realLog(f))
	}
	f.Fuzz(func(t *testing.T, log []byte) {
		b := bytes.Clone(base.image)
		w := *base
		w.t, w.image = t, b
		for n := uint32(0); n < w.j.last && len(log) > 0; n++ {
			log = log[copy(w.block(n), log):]
		}
		sealJournalSuper(w.block(0))
		if err := walkBounded(t, "the log", inMemory(b)); err != nil && !knownError(err) {
			t.Errorf("an error of no kind: %v", err)
		}
		if fs, err := New().Open(inMemory(b)); err == nil {
			defer fs.Close()
			checkOverlay(t, fs.(*FS), w.j)
		}
	})
}

// checkOverlay finds blocks that the overlay may not hold, or not there.
func checkOverlay(t testing.TB, fs *FS, j *journal) {
	t.Helper()
	for i, r := range fs.over.replayed {
		if i > 0 && r.block <= fs.over.replayed[i-1].block {
			t.Errorf("block %d comes after block %d", r.block, fs.over.replayed[i-1].block)
		}
		if at := r.journal &^ escapedBlock; !j.owns(at) || j.owns(r.block) || int64(r.block)<<fs.sb.blockBits >= fs.dev.Size() {
			t.Errorf("block %d is replayed from block %d", r.block, at)
		}
	}
}

// realLog is a log that the kernel has written, as usedLog.
func realLog(t testing.TB) []byte {
	t.Helper()
	testneed.Loop(t)
	path := filepath.Join(imageDir(t), "image")
	must(t, os.WriteFile(path, logImage(t), 0o600))
	dir, umount := mount(t, path, "rw,data=journal")
	must(t, os.WriteFile(filepath.Join(dir, "file"), binary.BigEndian.AppendUint32(nil, jbd2Magic), 0o600))
	must(t, os.Mkdir(filepath.Join(dir, "dir"), 0o700))
	syncFS(t, dir)
	must(t, os.Remove(filepath.Join(dir, "dir")))
	syncFS(t, dir)
	dirty := copyFile(t, path)
	umount()
	fs, _ := openImage(t, dirty)
	j, err := fs.openJournal()
	must(t, err)
	b := make([]byte, 48<<10)
	must(t, j.read(0, b))
	return b
}
