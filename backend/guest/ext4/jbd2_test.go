package ext4

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"domfs/backend/backendtest/fstree"
	"domfs/backend/backendtest/testneed"
)

// with is content whose first four bytes are replaced.
func with(c copied, magic uint32) copied {
	binary.BigEndian.PutUint32(c.data, magic)
	return c
}

// formats chooses among logFormats.
type formats func(f logFormat) bool

func has(compat, incompat uint32) formats {
	return func(f logFormat) bool { return f.compat&compat == compat && f.incompat&incompat == incompat }
}

func (a formats) not(b formats) formats { return func(f logFormat) bool { return a(f) && !b(f) } }

func (a formats) or(b formats) formats { return func(f logFormat) bool { return a(f) || b(f) } }

var (
	anyFormat = has(0, 0)
	// oneOfEach is for what no layout of blocks changes.
	oneOfEach = formats(func(f logFormat) bool {
		return f.name == "32-bit" || f.name == "checksums of version 1" || f.name == "checksums of version 2" || f.name == "checksums of version 3, 64-bit"
	})
	v1    = has(journalCompatChecksum, 0)
	v2    = has(0, journalIncompatChecksumV2)
	v3    = has(0, journalIncompatChecksumV3)
	async = has(0, journalIncompatAsyncCommit)
)

// logCase is a log, and what the target's first blocks are after its replay.
type logCase struct {
	name  string
	of    formats
	build func(w *logWriter)
	want  string
	// warns is of the warning where the kernel refuses to mount; "" where it mounts.
	warns string
	// mounts says that the kernel mounts without a word where there is a warning here.
	mounts bool
	// differs says that here more, or less, is replayed than the kernel has before it refuses.
	differs bool
}

// flip changes a byte of a block of the journal.
func (w *logWriter) flip(n uint32, at int) { w.block(n)[at] ^= 0x40 }

var logCases = []logCase{
	{name: "the last copy counts", of: anyFormat, want: "C.B", build: func(w *logWriter) {
		w.write(w.fill(0, 'A'), w.fill(2, 'A'))
		w.write(w.fill(2, 'B'))
		w.write(w.fill(0, 'C'))
	}},
	{name: "several descriptors, one without the flag of the last tag", of: anyFormat, want: strings.Repeat("A", 60), build: func(w *logWriter) {
		// As many tags as fit, so that the room ends the list.
		room := 1<<10 - jbd2HeaderBytes - tagUUIDBytes
		if w.j.checksumsBlocks() {
			room -= tailBytes
		}
		var list []copied
		for i := range room / w.j.tagBytes() {
			c := w.fill(i%60, 'A')
			if i > 0 {
				c.flags |= tagSameUUID
			}
			list = append(list, c)
		}
		w.rawDescriptor(list...)
		w.descriptor(w.fill(0, 'A'))
		w.commit()
	}},
	{name: "each tag with an identity", of: anyFormat, want: "AB", build: func(w *logWriter) {
		b := w.fill(1, 'B')
		b.flags = tagLast
		w.rawDescriptor(w.fill(0, 'A'), b)
		w.commit()
	}},
	{name: "a flag of no meaning", of: oneOfEach, want: "A", build: func(w *logWriter) {
		a := w.fill(0, 'A')
		a.flags = 0x4
		w.write(a)
	}},
	{name: "revoked later", of: anyFormat, want: ".A.", build: func(w *logWriter) {
		w.write(w.fill(0, 'A'), w.fill(1, 'A'), w.fill(2, 'A'))
		w.revoke(w.target[0], w.target[2])
		w.commit()
	}},
	{name: "revoked in the same transaction", of: oneOfEach, want: ".A", build: func(w *logWriter) {
		w.descriptor(w.fill(0, 'A'), w.fill(1, 'A'))
		w.revoke(w.target[0])
		w.commit()
	}},
	{name: "revoked before", of: oneOfEach, want: "A", build: func(w *logWriter) {
		w.revoke(w.target[0])
		w.commit()
		w.write(w.fill(0, 'A'))
	}},
	{name: "revoked twice", of: oneOfEach, want: "..C", build: func(w *logWriter) {
		w.revoke(w.target[0], w.target[2])
		w.commit()
		w.write(w.fill(0, 'B'), w.fill(2, 'B'))
		w.revoke(w.target[2], w.target[0], w.target[0])
		w.commit()
		w.write(w.fill(2, 'C'))
	}},
	{name: "revoked by a transaction that was not committed", of: oneOfEach, want: "A", build: func(w *logWriter) {
		w.write(w.fill(0, 'A'))
		w.revoke(w.target[0])
	}},
	{name: "a wrapped log", of: oneOfEach, want: "BBBBBBBB", build: func(w *logWriter) {
		w.begin(w.j.last-5, 7)
		w.write(w.fill(0, 'A'))
		w.write(w.fill(0, 'B'), w.fill(1, 'B'), w.fill(2, 'B'), w.fill(3, 'B'), w.fill(4, 'B'), w.fill(5, 'B'), w.fill(6, 'B'), w.fill(7, 'B'))
	}},
	{name: "numbers that wrap", of: oneOfEach, want: ".BBD", build: func(w *logWriter) {
		w.begin(w.j.first, 0xfffffffe)
		w.write(w.fill(0, 'A'), w.fill(1, 'A'))
		w.write(w.fill(1, 'B'), w.fill(2, 'B'), w.fill(3, 'B'))
		w.revoke(w.target[0], w.target[3])
		w.commit()
		w.write(w.fill(3, 'D'))
	}},
	{name: "numbers that end at zero", of: oneOfEach, want: "AB", build: func(w *logWriter) {
		w.begin(w.j.first, 0xfffffffe)
		w.write(w.fill(0, 'A'))
		w.write(w.fill(1, 'B'))
	}},
	{name: "escaped blocks", of: anyFormat, want: "ABC", build: func(w *logWriter) {
		w.write(with(w.fill(0, 'A'), jbd2Magic), with(w.fill(1, 'B'), jbd2Magic+1), with(w.fill(2, 'C'), 0))
	}},
	{name: "no commit block", of: oneOfEach, want: "A", build: func(w *logWriter) {
		w.write(w.fill(0, 'A'))
		w.descriptor(w.fill(0, 'B'), w.fill(1, 'B'))
	}},
	{name: "a commit block of another number", of: oneOfEach, want: "A", build: func(w *logWriter) {
		w.write(w.fill(0, 'A'))
		w.descriptor(w.fill(0, 'B'))
		w.tid++
		w.commit()
	}},
	{name: "a commit block of an earlier number", of: oneOfEach, want: "A", build: func(w *logWriter) {
		w.write(w.fill(0, 'A'))
		w.descriptor(w.fill(0, 'B'))
		w.tid--
		w.commit()
	}},
	{name: "a block of no type", of: oneOfEach, want: "A", build: func(w *logWriter) {
		w.write(w.fill(0, 'A'))
		w.add(w.header(77))
		w.write(w.fill(0, 'B'))
	}},
	{name: "nothing but commits", of: oneOfEach, want: ".", build: func(w *logWriter) {
		w.commit()
		w.commit()
	}},
	{name: "no transaction", of: anyFormat, want: ".", build: func(w *logWriter) {}},
	{name: "an empty log", of: oneOfEach, want: ".", build: func(w *logWriter) {
		w.write(w.fill(0, 'A'))
		w.start = 0
	}},
	{name: "a log that begins before its first block", of: oneOfEach, want: ".", differs: true, warns: "the log is from block 2", build: func(w *logWriter) {
		w.write(w.fill(0, 'A'))
		binary.BigEndian.PutUint32(w.block(0)[0x14:], 2) // leaves too short a log
	}},
	{name: "more records than a revoke block holds", of: oneOfEach, want: "A", differs: true, warns: "more records", build: func(w *logWriter) {
		w.write(w.fill(0, 'A'))
		n := w.revoke(w.target[0])
		binary.BigEndian.PutUint32(w.block(n)[jbd2HeaderBytes:], 5000)
		w.seal(w.block(n))
		w.commit()
	}},
	{name: "fewer records than a revoke block begins with", of: oneOfEach, want: "A", build: func(w *logWriter) {
		w.write(w.fill(0, 'A'))
		n := w.revoke(w.target[0])
		binary.BigEndian.PutUint32(w.block(n)[jbd2HeaderBytes:], 3)
		w.seal(w.block(n))
		w.commit()
	}},

	// Checksums.
	{name: "a commit block without a checksum", of: v1, want: "AB", build: func(w *logWriter) {
		w.write(w.fill(0, 'A'))
		w.descriptor(w.fill(1, 'B'))
		clear(w.block(w.commit())[12:20])
	}},
	{name: "a checksum of a transaction wrong", of: v1.not(async), want: "A", warns: "commit block is wrong", build: func(w *logWriter) {
		w.write(w.fill(0, 'A'))
		_, data := w.descriptor(w.fill(1, 'B'), w.fill(2, 'B'))
		w.commit()
		w.flip(data[1], 5)
	}},
	{name: "a checksum of a transaction wrong, and one committed later", of: v1, want: "A", warns: "is wrong", build: func(w *logWriter) {
		w.write(w.fill(0, 'A'))
		_, data := w.descriptor(w.fill(1, 'B'), w.fill(2, 'B'))
		w.commit()
		w.flip(data[1], 5)
		w.write(w.fill(1, 'C'))
	}},
	{name: "a checksum of the last transaction wrong", of: v1.or(v3).and(async), want: "A", build: func(w *logWriter) {
		w.write(w.fill(0, 'A'))
		w.descriptor(w.fill(1, 'B'), w.fill(2, 'B'))
		w.flip(w.commit(), 17)
	}},
	{name: "a commit block's checksum wrong, asynchronous, and one committed later", of: v3.and(async), want: "A", mounts: true, warns: "later ones were committed", build: func(w *logWriter) {
		w.write(w.fill(0, 'A'))
		w.descriptor(w.fill(1, 'B'))
		w.flip(w.commit(), 30)
		w.write(w.fill(2, 'C'))
	}},
	{name: "the checksums of two commit blocks wrong, asynchronous", of: v3.and(async), want: "ABC", mounts: true, warns: "later ones were committed", build: func(w *logWriter) {
		w.write(w.fill(0, 'A'))
		w.descriptor(w.fill(1, 'B'))
		w.flip(w.commit(), 30)
		w.write(w.fill(2, 'C'))
		w.descriptor(w.fill(3, 'D'))
		w.flip(w.commit(), 30)
		w.write(w.fill(4, 'E'))
	}},
	{name: "a checksum of a transaction wrong, older than the one before", of: v1.or(v2).or(v3), want: "A", build: func(w *logWriter) {
		w.write(w.fill(0, 'A'))
		w.time -= 1000
		w.descriptor(w.fill(1, 'B'))
		w.flip(w.commit(), 17)
	}},
	{name: "a commit block's checksum wrong", of: v2.or(v3).not(async), want: "A", warns: "commit block is wrong", build: func(w *logWriter) {
		w.write(w.fill(0, 'A'))
		w.descriptor(w.fill(1, 'B'))
		w.flip(w.commit(), 30)
		w.write(w.fill(2, 'C'))
	}},
	{name: "only the beginning of a commit block written", of: v2.or(v3), want: "ABC", build: func(w *logWriter) {
		w.write(w.fill(0, 'A'))
		w.descriptor(w.fill(1, 'B'))
		n := w.commit()
		w.flip(n, 512)
		w.flip(n, 1023)
		w.write(w.fill(2, 'C'))
	}},
	{name: "a descriptor's checksum wrong", of: v2.or(v3), want: "A", differs: true, warns: "descriptor block is wrong", build: func(w *logWriter) {
		w.write(w.fill(0, 'A'))
		n, _ := w.descriptor(w.fill(1, 'B'))
		w.flip(n, 600)
		w.commit()
		w.write(w.fill(2, 'C'))
	}},
	{name: "a descriptor's checksum wrong in the first transaction", of: v2.or(v3), want: ".", warns: "descriptor block is wrong", build: func(w *logWriter) {
		n, _ := w.descriptor(w.fill(1, 'B'))
		w.flip(n, 600)
		w.commit()
		w.write(w.fill(2, 'C'))
	}},
	{name: "a descriptor's checksum wrong in a transaction older than the one before", of: v2.or(v3), want: "A", build: func(w *logWriter) {
		w.write(w.fill(0, 'A'))
		w.time -= 1000
		n, _ := w.descriptor(w.fill(1, 'B'))
		w.flip(n, 600)
		w.commit()
	}},
	{name: "a descriptor's checksum wrong in a transaction that was not committed", of: v2.or(v3), want: "A", build: func(w *logWriter) {
		w.write(w.fill(0, 'A'))
		n, _ := w.descriptor(w.fill(1, 'B'))
		w.flip(n, 600)
	}},
	{name: "a revoke block's checksum wrong", of: v2.or(v3), want: "A", differs: true, warns: "revoke block is wrong", build: func(w *logWriter) {
		w.write(w.fill(0, 'A'))
		w.flip(w.revoke(w.target[0]), 600)
		w.commit()
	}},
	{name: "a revoke block's checksum wrong in a transaction older than the one before", of: v2.or(v3), want: "A", build: func(w *logWriter) {
		w.write(w.fill(0, 'A'))
		w.time -= 1000
		w.flip(w.revoke(w.target[0]), 600)
		w.commit()
	}},
	{name: "a block's checksum wrong", of: v2.or(v3), want: "A.CDD", warns: "1 of its blocks", build: func(w *logWriter) {
		w.write(w.fill(0, 'A'))
		_, data := w.descriptor(w.fill(1, 'B'), w.fill(2, 'C'))
		w.flip(data[0], 100)
		w.commit()
		w.write(w.fill(3, 'D'), w.fill(4, 'D'))
	}},
	{name: "a block's checksum wrong, of which there are a copy before and one after", of: v2.or(v3), want: "ACB", warns: "2 of its blocks", build: func(w *logWriter) {
		w.write(w.fill(0, 'A'), w.fill(1, 'A'))
		_, data := w.descriptor(w.fill(0, 'B'), w.fill(1, 'B'), w.fill(2, 'B'))
		w.flip(data[0], 100)
		w.flip(data[1], 100)
		w.commit()
		w.write(w.fill(1, 'C'))
	}},
	{name: "the checksum wrong of a block that is revoked", of: v2.or(v3), want: ".A", build: func(w *logWriter) {
		_, data := w.descriptor(w.fill(0, 'A'), w.fill(1, 'A'))
		w.flip(data[0], 100)
		w.commit()
		w.revoke(w.target[0])
		w.commit()
	}},
	{name: "a block changed, and no checksum that says so", of: anyFormat.not(v1).not(v2).not(v3), want: "?", build: func(w *logWriter) {
		_, data := w.descriptor(w.fill(0, 'A'))
		w.flip(data[0], 100)
		w.commit()
	}},

	// Blocks that none can be.
	{name: "a block past the end of the device", of: anyFormat, want: "AC", differs: true, warns: "past the end", build: func(w *logWriter) {
		far := w.fill(1, 'B')
		far.block = 1 << 22
		w.write(w.fill(0, 'A'), far, w.fill(1, 'C'))
	}},
	{name: "a block of more than 32 bits", of: has(0, journalIncompat64Bit), want: "AC", differs: true, warns: "past the end", build: func(w *logWriter) {
		far := w.fill(1, 'B')
		far.block |= 1 << 40
		w.write(w.fill(0, 'A'), far, w.fill(1, 'C'))
	}},
}

func (a formats) and(b formats) formats { return func(f logFormat) bool { return a(f) && b(f) } }

// TestReplay_FollowsTheKernel lets the kernel replay the same logs.
func TestReplay_FollowsTheKernel(t *testing.T) {
	testneed.Loop(t)
	image := logImage(t)
	dir := imageDir(t)
	for _, c := range logCases {
		for _, f := range logFormats {
			if !c.of(f) {
				continue
			}
			t.Run(c.name+"/"+f.name, func(t *testing.T) {
				w := newLogWriter(t, image, f)
				c.build(w)
				b := w.finish()
				path := filepath.Join(dir, "image")
				must(t, os.WriteFile(path, b, 0o600))
				fs, _ := openImage(t, path)
				want := c.want + strings.Repeat(string(targetByte), targetBlocks-len(c.want))
				if got := targetIs(t, fs); got != want {
					t.Errorf("the target is\n%q, not\n%q", got, want)
				}
				warnings := fs.Warnings()
				if c.warns == "" && len(warnings) > 0 || c.warns != "" && (len(warnings) != 1 || !strings.Contains(warnings[0], c.warns)) {
					t.Errorf("warnings: %q", warnings)
				}

				kernel := filepath.Join(dir, "kernel")
				must(t, os.WriteFile(kernel, b, 0o600))
				mounted, umount, err := mountRecovering(t, kernel, "ro")
				if (err == nil) != (c.warns == "" || c.mounts) {
					t.Fatalf("the kernel's mount: %v", err)
				}
				if c.differs {
					return
				}
				if err != nil {
					// What it has replayed before it refused.
					mounted, umount, err = mountRecovering(t, kernel, "ro,noload")
					must(t, err)
				}
				defer umount()
				fstree.Compare(t, fs, mounted)
				if !bytes.Equal(b, mustRead(t, path)) {
					t.Error("the image was written to")
				}
			})
		}
	}
}

func mustRead(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return b
}

// TestReplay_ReadsLogsOfDebugfs has the log of another writer, and with e2fsck another
// reader, where the kernel has neither: blocks larger than its pages. A transaction fits one descriptor block, as
// debugfs gives larger ones no commit block.
func TestReplay_ReadsLogsOfDebugfs(t *testing.T) {
	testneed.Tools(t, "debugfs", "mke2fs", "e2fsck")
	for _, v := range []struct {
		open string // what debugfs opens the journal with
		args []string
	}{
		{"jo", []string{"-b", "1024", "-O", "^metadata_csum,^64bit"}},
		{"jo -c", []string{"-b", "1024"}},
		{"jo -v 2", []string{"-b", "4096"}},
		{"jo -c", []string{"-b", "8192"}},
		{"jo", []string{"-b", "65536", "-O", "^metadata_csum"}},
		{"jo -c", []string{"-b", "65536"}},
	} {
		t.Run(v.open+" "+strings.Join(v.args, " "), func(t *testing.T) {
			path := mkfs(t, 256, false, append([]string{"-t", "ext4"}, v.args...)...)
			clean, _ := openImage(t, path)
			size, end := clean.sb.blockBytes(), clean.sb.blocks
			write := func(value byte, block uint64, n int) string {
				name := filepath.Join(filepath.Dir(path), string(value))
				must(t, os.WriteFile(name, bytes.Repeat([]byte{value}, n*size), 0o600))
				return fmt.Sprintf("jw -b %d-%d %s", block, block+uint64(n)-1, name)
			}
			at := end - 60
			debugfs(t, path, v.open, write('A', at, 50), write('B', at+1, 3), fmt.Sprintf("jw -r %d,%d", at+2, at+10), write('C', at+10, 2), "jc")
			fs, _ := openImage(t, path)
			if got := fs.Warnings(); len(got) != 0 {
				t.Errorf("warnings: %q", got)
			}
			if len(fs.over.replayed) < 48 {
				t.Errorf("%d blocks are replayed", len(fs.over.replayed))
			}
			other := copyFile(t, path)
			if out, err := exec.Command("e2fsck", "-y", other).CombinedOutput(); err != nil && err.(*exec.ExitError).ExitCode() > 1 {
				t.Fatalf("e2fsck: %v: %s", err, out)
			}
			got, want := make([]byte, 60*size), make([]byte, 60*size)
			must(t, fs.readAt(got, int64(at)<<fs.sb.blockBits))
			_, err := openDevice(t, other).ReadAt(want, int64(at)<<fs.sb.blockBits)
			must(t, err)
			for i := range 60 {
				if !bytes.Equal(got[i*size:][:size], want[i*size:][:size]) {
					t.Fatalf("block %d begins with %q, e2fsck has replayed %q", i, got[i*size:][:10], want[i*size:][:10])
				}
			}
			if got[0] != 'A' || got[size] != 'B' || got[2*size] != 0 || got[10*size] != 'C' {
				t.Errorf("blocks are of %q, %q, %q and %q", got[0], got[size], got[2*size], got[10*size])
			}
		})
	}
}
