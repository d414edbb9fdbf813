package ext4

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"domfs/backend/backendtest/cputime"
	"domfs/backend/backendtest/testneed"
)

// fastArea writes an area of fast commits by rule.
type fastArea struct {
	blockBytes int
	tid        uint32
	area       []byte
	crc        uint32
}

func newFastArea(blockBytes int, tid uint32) *fastArea {
	a := &fastArea{blockBytes: blockBytes, tid: tid}
	return a.tag(fcHead, u32s(0, tid))
}

// u32s are numbers as they are on disk.
func u32s(values ...uint32) (b []byte) {
	for _, v := range values {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

// raw adds a tag as it is.
func (a *fastArea) raw(kind, length uint16, value []byte) {
	a.area = binary.LittleEndian.AppendUint16(a.area, kind)
	a.area = binary.LittleEndian.AppendUint16(a.area, length)
	a.area = append(a.area, value...)
}

func (a *fastArea) left() int { return a.blockBytes - len(a.area)%a.blockBytes }

// tag adds a tag, in the next block if this one has no room for it and a tail.
func (a *fastArea) tag(kind uint16, value []byte) *fastArea {
	if a.left() < 2*fcTagBytes+len(value)+fcTailBytes {
		a.write(fcPad, make([]byte, a.left()-fcTagBytes))
	}
	a.write(kind, value)
	return a
}

func (a *fastArea) write(kind uint16, value []byte) {
	at := len(a.area)
	a.raw(kind, uint16(len(value)), value)
	a.crc = crc32c(a.crc, a.area[at:])
}

// tail ends a fast commit, and its block.
func (a *fastArea) tail() *fastArea { return a.tailOf(a.tid, 0) }

func (a *fastArea) tailOf(tid, wrong uint32) *fastArea {
	at := len(a.area)
	a.raw(fcTail, uint16(a.left()-fcTagBytes), u32s(tid))
	a.crc = crc32c(a.crc, a.area[at:])
	a.area = append(a.area, u32s(a.crc^wrong)...)
	a.area = append(a.area, make([]byte, (a.blockBytes-len(a.area)%a.blockBytes)%a.blockBytes)...)
	a.crc = 0
	return a
}

func (a *fastArea) addRange(ino uint32, r run) *fastArea {
	node := make(extentNode, 2*extentBytes)
	node.setRun(0, r)
	return a.tag(fcAddRange, slices.Concat(u32s(ino), node[extentBytes:]))
}

func (a *fastArea) delRange(ino, first, n uint32) *fastArea {
	return a.tag(fcDelRange, u32s(ino, first, n))
}

func (a *fastArea) name(kind uint16, parent, ino uint32, name string) *fastArea {
	return a.tag(kind, append(u32s(parent, ino), name...))
}

// inode adds an inode like another one, with so many links.
func (a *fastArea) inode(fs *FS, like, ino uint32, links uint16, change ...func(raw []byte)) *fastArea {
	raw, err := fs.rawInode(like)
	if err != nil {
		panic(err)
	}
	raw = bytes.Clone(raw)
	binary.LittleEndian.PutUint16(raw[inodeLinksAt:], links)
	for _, c := range change {
		c(raw)
	}
	return a.tag(fcInode, slices.Concat(u32s(ino), raw))
}

// put writes an area into an image whose log is empty, and marks the image as one that
// needs recovery.
func putFastArea(t testing.TB, image string, area []byte) {
	t.Helper()
	fs, _ := openImage(t, image)
	j, err := fs.openJournal()
	must(t, err)
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	phys, _ := j.phys(0)
	b := make([]byte, journalSuperBytes)
	_, err = f.ReadAt(b, int64(phys)<<fs.sb.blockBits)
	must(t, err)
	// A clean unmount takes the journal's feature away.
	be := binary.BigEndian
	be.PutUint32(b[0x28:], be.Uint32(b[0x28:])|journalIncompatFastCommit)
	be.PutUint32(b[0x1c:], j.first)
	sealJournalSuper(b)
	_, err = f.WriteAt(b, int64(phys)<<fs.sb.blockBits)
	must(t, err)
	j, err = fs.openJournal()
	must(t, err)
	block := make([]byte, fs.sb.blockBytes())
	for n := range j.fastCommitBlocks {
		clear(block)
		if at := int(n) * len(block); at < len(area) {
			copy(block, area[at:])
		} else if n > 2 && at > len(area)+2*len(block) {
			break
		}
		phys, _ = j.phys(j.fastCommitFirst + n)
		_, err := f.WriteAt(block, int64(phys)<<fs.sb.blockBits)
		must(t, err)
	}
	e := newEditor(fs)
	must(t, e.super(func(b []byte) {
		binary.LittleEndian.PutUint32(b[0x60:], binary.LittleEndian.Uint32(b[0x60:])|incompatRecover)
	}))
	s, err := e.superView()
	must(t, err)
	_, err = f.WriteAt(s, superOffset)
	must(t, err)
}

// fastTID is the transaction that the fast commits of an image whose log is empty are of.
func fastTID(t testing.TB, fs *FS) uint32 {
	t.Helper()
	j, err := fs.openJournal()
	must(t, err)
	return j.sequence
}

// areaImage is a filesystem to which fast commits are replayed.
func areaImage(t testing.TB, path string) {
	t.Helper()
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Truncate(path, 32*mib))
	command(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-O", "fast_commit", "-J", "size=4,fast_commit_size=256", path)
	populate(t, path, func(dir string) {
		name := func(names ...string) string { return filepath.Join(append([]string{dir}, names...)...) }
		must(t, os.WriteFile(name("a"), content(1, 20_000), 0o600))
		must(t, os.WriteFile(name("b"), content(2, 3000), 0o600))
		must(t, os.Link(name("b"), name("b2")))
		f, err := os.Create(name("sparse"))
		must(t, err)
		for i := range int64(60) {
			_, err := f.WriteAt([]byte("sparse"), i<<11)
			must(t, err)
		}
		must(t, f.Close())
		must(t, os.Mkdir(name("d"), 0o700))
		must(t, os.Mkdir(name("empty"), 0o700))
		must(t, os.Mkdir(name("big"), 0o700))
		for i := range 700 {
			must(t, os.Link(name("a"), name("big", fmt.Sprintf("a-name-that-is-long-%d", i))))
		}
		for i := range 20 {
			must(t, os.WriteFile(name("d", fmt.Sprint(i)), nil, 0o600))
		}
	})
}

// areaCase is an area, and what the kernel makes of it.
type areaCase struct {
	name    string
	make    func(a *fastArea, fs *FS, ino func(names ...string) uint32)
	refused bool // the kernel does not mount it
	empty   bool // nothing is replayed
	byTool  bool // e2fsck makes of it what is read
}

var areaCases = []areaCase{
	{name: "add a range after the end", make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		a.addRange(ino("b"), run{logical: 10, blocks: 5, phys: 27_000, state: runWritten}).inode(fs, ino("b"), ino("b"), 2).tail()
	}},
	{name: "add a range in place of another", make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		a.addRange(ino("a"), run{logical: 3, blocks: 5, phys: 27_000, state: runWritten}).inode(fs, ino("a"), ino("a"), 701).tail()
	}},
	{name: "add an unwritten range", make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		a.addRange(ino("a"), run{logical: 40, blocks: 100, phys: 27_000, state: runUnwritten}).addRange(ino("a"), run{logical: 50, blocks: 1, phys: 27_010, state: runWritten}).
			inode(fs, ino("a"), ino("a"), 701, func(raw []byte) { binary.LittleEndian.PutUint32(raw[inodeSizeAt:], 200<<10) }).tail()
	}},
	{name: "many ranges, so that the tree grows, splits and shrinks", make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		for i := range uint64(400) {
			k := i * 7919 % 400
			a.addRange(ino("b"), run{logical: 4 + 2*k, blocks: 1, phys: 27_000 + 2*k, state: runWritten})
		}
		a.inode(fs, ino("b"), ino("b"), 2, func(raw []byte) { binary.LittleEndian.PutUint32(raw[inodeSizeAt:], 900<<10) }).tail()
		for i := range uint64(150) {
			a.addRange(ino("b"), run{logical: 5 + 2*i, blocks: 1, phys: 27_001 + 2*i, state: runWritten})
		}
		a.delRange(ino("b"), 600, 150).inode(fs, ino("b"), ino("b"), 2, func(raw []byte) { binary.LittleEndian.PutUint32(raw[inodeSizeAt:], 900<<10) }).tail()
	}},
	{name: "delete a range", make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		a.delRange(ino("a"), 3, 7).inode(fs, ino("a"), ino("a"), 701).tail()
	}},
	{name: "delete everything", make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		a.delRange(ino("sparse"), 0, 1<<31).inode(fs, ino("sparse"), ino("sparse"), 1).tail()
	}},
	{name: "create a file", make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		a.inode(fs, ino("b"), 900, 1).addRange(900, run{logical: 0, blocks: 2, phys: 28_500, state: runWritten}).name(fcCreate, rootIno, 900, "new").inode(fs, ino("b"), 900, 1).tail()
	}},
	{name: "create a file in a group that was not used", make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		n := fs.sb.inodesPerGroup*2 + 100
		a.inode(fs, ino("b"), n, 1).name(fcCreate, rootIno, n, "new").inode(fs, ino("b"), n, 1).tail()
	}},
	{name: "create a directory, and a file in it", make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		a.inode(fs, ino("empty"), 900, 2).name(fcCreate, rootIno, 900, "new").inode(fs, ino("b"), 901, 1).name(fcCreate, 900, 901, "below").inode(fs, ino("b"), 901, 1).tail()
	}},
	{name: "link, and unlink the old name", make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		a.name(fcLink, ino("d"), ino("b"), "moved").name(fcUnlink, rootIno, ino("b"), "b").inode(fs, ino("b"), ino("b"), 2).tail()
	}},
	{name: "unlink the last name", make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		a.name(fcUnlink, rootIno, ino("sparse"), "sparse").tail()
	}},
	{name: "unlink the first entries of a block", make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		for i := range 200 {
			a.name(fcUnlink, ino("big"), ino("a"), fmt.Sprintf("a-name-that-is-long-%d", i))
		}
		a.tail()
	}},
	{name: "a directory that becomes indexed, and grows", make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		for i := range 300 {
			a.name(fcLink, ino("empty"), ino("a"), fmt.Sprintf("%s-%d", strings.Repeat("n", i%80), i))
		}
		a.tail()
	}},
	{name: "an indexed directory that grows a level", make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		for i := range 700 {
			a.name(fcLink, ino("big"), ino("a"), fmt.Sprintf("%s-%d", strings.Repeat("n", 150+i%90), i))
		}
		a.tail()
	}},
	{name: "a name that is there", make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		a.name(fcLink, rootIno, ino("b"), "a").name(fcLink, rootIno, ino("b"), "new").tail()
	}},
	{name: "unlink of what is not there, or another's", make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		a.name(fcUnlink, rootIno, ino("b"), "nothing").name(fcUnlink, rootIno, ino("a"), "b2").name(fcLink, rootIno, ino("b"), "new").tail()
	}},
	{name: "inodes that are none", make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		for _, n := range []uint32{0, 1, 7, 8, 5000, 1 << 31} {
			a.name(fcLink, rootIno, n, "x").name(fcUnlink, rootIno, n, "b").name(fcLink, n, ino("b"), "x").addRange(n, run{logical: 0, blocks: 1, phys: 28_500, state: runWritten}).delRange(n, 0, 10)
		}
		a.name(fcLink, rootIno, ino("b"), "new").tail()
	}},
	{name: "two fast commits, the second torn", make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		a.name(fcLink, rootIno, ino("b"), "one").tail().name(fcLink, rootIno, ino("b"), "two").tailOf(a.tid, 1)
	}},
	{name: "two fast commits, the second of another transaction", make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		a.name(fcLink, rootIno, ino("b"), "one").tail().name(fcLink, rootIno, ino("b"), "two").tailOf(a.tid-1, 0)
	}},
	{name: "two fast commits, the second half-written", make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		a.name(fcLink, rootIno, ino("b"), "one").tail().name(fcLink, rootIno, ino("b"), "two")
	}},
	{name: "a length past the block, after a fast commit", make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		a.name(fcLink, rootIno, ino("b"), "one").tail().raw(fcLink, 2000, nil)
	}},
	{name: "an area that is full", refused: true, make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		for i := 0; len(a.area) < 255*a.blockBytes; i++ {
			a.name(fcLink, rootIno, ino("b"), fmt.Sprint("new-", i)).tail()
		}
	}},
	{name: "of an older transaction", empty: true, make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		*a = *newFastArea(a.blockBytes, a.tid-1)
		a.name(fcLink, rootIno, ino("b"), "one").tail()
	}},
	{name: "no head", empty: true, make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		a.area, a.crc = nil, 0
		a.name(fcLink, rootIno, ino("b"), "one").tail()
	}},
	{name: "the first one torn", refused: true, empty: true, make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		a.name(fcLink, rootIno, ino("b"), "one").tailOf(a.tid, 1)
	}},
	{name: "the first one half-written", refused: true, empty: true, make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		a.name(fcLink, rootIno, ino("b"), "one")
	}},
	{name: "an unknown feature", refused: true, empty: true, make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		a.area, a.crc = nil, 0
		a.tag(fcHead, u32s(1, a.tid)).name(fcLink, rootIno, ino("b"), "one").tail()
	}},
	{name: "a length past the block", refused: true, empty: true, make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		a.raw(fcLink, 2000, nil)
	}},
	{name: "a length that the kind cannot have", refused: true, empty: true, make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		a.tag(fcDelRange, u32s(ino("b"), 0)).tail()
	}},
	{name: "a name that is too long", refused: true, empty: true, make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		a.name(fcLink, rootIno, ino("b"), strings.Repeat("x", 256)).tail()
	}},
	{name: "an unknown kind", refused: true, empty: true, make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		a.tag(10, u32s(1)).tail()
	}},
	{name: "a deleted file that is open", refused: true, byTool: true, make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		a.name(fcUnlink, rootIno, ino("sparse"), "sparse").inode(fs, ino("sparse"), ino("sparse"), 0).tail()
	}},
	{name: "create without an inode", refused: true, make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		a.name(fcLink, rootIno, ino("b"), "one").name(fcCreate, rootIno, 900, "x").tail()
	}},
	{name: "create of inodes that cannot be", refused: true, make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		a.name(fcCreate, rootIno, 0, "x").tail()
	}},
	{name: "an inode without a type", refused: true, make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		a.inode(fs, ino("b"), 900, 1, func(raw []byte) { clear(raw[:2]) }).tail()
	}},
	{name: "a link in what is no directory", refused: true, make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
		a.name(fcLink, ino("a"), ino("b"), "x").tail()
	}},
}

func TestFastCommits_OfEachKindAndFault(t *testing.T) {
	image := filepath.Join(reflinkDir(t), "image")
	areaImage(t, image)
	compareAreas(t, image, areaCases)
}

// compareAreas replays areas to an image, and compares what is left with what the kernel leaves.
func compareAreas(t *testing.T, image string, cases []areaCase) {
	t.Helper()
	testneed.Loop(t)
	testneed.Tools(t, "mke2fs", "mkfs.xfs", "e2fsck")
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			cut := clone(t, image, image+".cut")
			before, _ := openImage(t, cut)
			ino := func(names ...string) uint32 { return uint32(lookup(t, before, names...).Ino) }
			a := newFastArea(before.sb.blockBytes(), fastTID(t, before))
			c.make(a, before, ino)
			putFastArea(t, cut, a.area)
			fs, mounted := checkFastCut(t, cut)
			if mounted == c.refused {
				t.Errorf("the kernel mounts it: %v; warnings %q", mounted, fs.Warnings())
			}
			if none := fs.fastCommits == [fcKinds]int{}; none != c.empty {
				t.Errorf("tags %v", fs.fastCommits)
			}
			if c.refused {
				t.Logf("%q", fs.Warnings())
			}
			if c.byTool {
				tool := clone(t, image, image+".tool")
				putFastArea(t, tool, a.area)
				_ = exec.Command("e2fsck", "-fy", tool).Run() // its status says what it did
				mounted, umount := mount(t, tool, "ro")
				// It leaves the directory's times as they were.
				compareRecovered(t, fs, time.Unix(0, 0), mounted)
				umount()
			}
			if c.name == "an area that is full" {
				if a := lookup(t, fs, "new-254"); a.Nlink != 257 {
					t.Errorf("the last of the names: %+v", a)
				}
			}
		})
	}
}

// TestFastCommits_AreBounded replays what takes far more work than any guest's fast commits.
func TestFastCommits_AreBounded(t *testing.T) {
	testneed.Loop(t)
	testneed.Tools(t, "mke2fs", "mkfs.xfs")
	dir := reflinkDir(t)
	image := filepath.Join(dir, "image")
	areaImage(t, image)
	before, _ := openImage(t, image)
	sparse := uint32(lookup(t, before, "sparse").Ino)
	for _, c := range []struct {
		name string
		make func(a *fastArea)
	}{
		{"a large range again and again", func(a *fastArea) {
			for i := range uint32(8000) {
				a.addRange(sparse, run{logical: uint64(i%2) * 7, blocks: 9000, phys: 9000 + uint64(i%3), state: runWritten})
			}
		}},
		{"ranges in all places", func(a *fastArea) {
			for i := range uint64(8000) {
				a.addRange(sparse, run{logical: i * 50021 % maxLogical &^ 1, blocks: 1, phys: 9000 + i, state: runWritten})
			}
		}},
		{"all of a file, again and again", func(a *fastArea) {
			for range 8000 {
				a.delRange(sparse, 0, 1<<32-1)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cut := clone(t, image, image+".cut")
			a := newFastArea(before.sb.blockBytes(), fastTID(t, before))
			c.make(a)
			a.tail()
			if blocks := len(a.area) / before.sb.blockBytes(); blocks > 255 {
				t.Fatalf("%d blocks", blocks)
			}
			putFastArea(t, cut, a.area)
			start := cputime.Now()
			fs, _ := openImage(t, cut)
			if took := start.Used(); took > 10*time.Second {
				t.Errorf("%v", took)
			}
			if n := len(fs.over.edited); n > maxEditedBytes>>10 {
				t.Errorf("%d edited blocks", n)
			}
			if _, _, err := walk(fs, 1<<16, 1<<28); err != nil {
				t.Error(err)
			}
		})
	}
}

// fastFuzz is an image in memory that areas are replayed to.
type fastFuzz struct {
	disk  []byte
	tid   uint32
	seeds [][]byte
}

func newFastFuzz(t testing.TB, make func(t testing.TB, path string), cases []areaCase) *fastFuzz {
	t.Helper()
	testneed.Loop(t)
	testneed.Tools(t, "mke2fs")
	image := filepath.Join(imageDir(t), "image")
	make(t, image)
	before, _ := openImage(t, image)
	ino := func(names ...string) uint32 { return uint32(lookup(t, before, names...).Ino) }
	f := &fastFuzz{tid: fastTID(t, before)}
	for _, c := range cases {
		a := newFastArea(before.sb.blockBytes(), f.tid)
		c.make(a, before, ino)
		f.seeds = append(f.seeds, a.area)
	}
	var err error
	f.disk, err = os.ReadFile(image)
	must(t, err)
	return f
}

// replay replays an area, whose checksums are made right first, and walks what is there
// then.
func (f *fastFuzz) replay(t *testing.T, area []byte) {
	fs, err := New().Open(inMemory(f.disk))
	must(t, err)
	defer fs.Close()
	x := fs.(*FS)
	bits := x.sb.blockBits
	sealArea(x.sb, area, f.tid)
	read := func(n uint32) ([]byte, error) {
		b := make([]byte, x.sb.blockBytes())
		if at := int(n) << bits; at < len(area) {
			copy(b, area[at:])
		}
		return b, nil
	}
	scanned, err := x.sb.scanFastCommits(255, f.tid, read)
	if err != nil {
		return
	}
	r := fcReplay{e: newEditor(x)}
	if err := r.replay(scanned, 255, read); err != nil {
		if !told(err) {
			t.Fatalf("an error that is not of the guest's bytes: %v", err)
		}
		r.e.discard()
	} else {
		r.e.finish()
	}
	if n := len(x.over.edited); n > maxEditedBytes>>bits {
		t.Fatalf("%d edited blocks", n)
	}
	_, _, _ = walk(fs, 1<<14, 1<<20)
}

func TestFastCommits_SurviveChangedAreas(t *testing.T) {
	surviveChangedAreas(t, newFastFuzz(t, areaImage, areaCases))
	surviveChangedAreas(t, newFastFuzz(t, inlineAreaImage, inlineAreaCases))
}

func surviveChangedAreas(t *testing.T, f *fastFuzz) {
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 250 {
		area := bytes.Clone(f.seeds[rnd.IntN(len(f.seeds))])
		area = area[:min(len(area), 16<<10)]
		if len(area) == 0 {
			continue
		}
		for range 1 + rnd.IntN(6) {
			at := rnd.IntN(min(len(area), 64<<rnd.IntN(9)))
			switch rnd.IntN(3) {
			case 0:
				area[at] = byte(rnd.Uint32())
			case 1:
				area[at] ^= 1 << rnd.IntN(8)
			case 2:
				copy(area[at:], []byte{0xff, 0xff, 0xff, 0xff}[rnd.IntN(4):])
			}
		}
		start := cputime.Now()
		f.replay(t, area)
		if took := start.Used(); took > 10*time.Second {
			t.Fatalf("%v for\n%x", took, area)
		}
	}
}

func FuzzFastCommit(f *testing.F) {
	disks := []*fastFuzz{newFastFuzz(f, areaImage, areaCases), newFastFuzz(f, inlineAreaImage, inlineAreaCases)}
	for i, z := range disks {
		for _, s := range z.seeds {
			f.Add(i == 1, s[:min(len(s), 8<<10)])
		}
	}
	f.Fuzz(func(t *testing.T, inline bool, area []byte) {
		z := disks[0]
		if inline {
			z = disks[1]
		}
		if len(area) <= 64<<10 {
			z.replay(t, bytes.Clone(area))
		}
	})
}

// sealArea makes the tails of an area right.
func sealArea(s *super, area []byte, tid uint32) {
	crc := uint32(0)
	for at := 0; at < len(area); at += s.blockBytes() {
		s.fcTags(area[at:min(len(area), at+s.blockBytes())], func(kind uint16, whole, value []byte) bool {
			if kind == fcTail {
				binary.LittleEndian.PutUint32(value, tid)
				binary.LittleEndian.PutUint32(value[4:], crc32c(crc, whole[:fcTagBytes+4]))
				crc = 0
				return true
			}
			crc = crc32c(crc, whole)
			return true
		})
	}
}
