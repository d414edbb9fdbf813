package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest/cputime"
	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

// smallImage is the bytes of a small image with something of everything that has a
// parser. The image has no checksums unless asked for, so that changes reach the parsers.
func smallImage(t testing.TB, args ...string) []byte {
	t.Helper()
	source := imageDir(t)
	must(t, os.Mkdir(filepath.Join(source, "dir"), 0o755))
	for i := range 60 {
		must(t, os.WriteFile(filepath.Join(source, "dir", strings.Repeat("name", 10)+string(rune('A'+i))), []byte("x"), 0o644))
	}
	f, err := os.Create(filepath.Join(source, "fragmented"))
	must(t, err)
	for i := range int64(150) {
		_, err := f.WriteAt([]byte("data"), i*4096)
		must(t, err)
	}
	must(t, f.Close())
	must(t, os.Symlink("target", filepath.Join(source, "link")))
	must(t, os.Symlink(strings.Repeat("target", 50), filepath.Join(source, "slow link")))
	must(t, unix.Mkfifo(filepath.Join(source, "fifo"), 0o600))
	must(t, unix.Lsetxattr(filepath.Join(source, "fragmented"), "user.one", content(1, 50), 0))
	must(t, unix.Lsetxattr(filepath.Join(source, "fragmented"), "user.two", content(1, 400), 0))
	must(t, unix.Lsetxattr(filepath.Join(source, "dir"), "user.three", content(1, 10), 0))
	features := strings.Join(args, ",")
	if strings.Contains(features, "inline_data") {
		must(t, os.MkdirAll(filepath.Join(source, "few", "below"), 0o755))
		for i := range 9 {
			must(t, os.WriteFile(filepath.Join(source, "few", fmt.Sprintf("%d%s", i, strings.Repeat("x", i))), content(uint64(i), 15*i), 0o644))
			must(t, os.Symlink(strings.Repeat("target", 5+3*i), filepath.Join(source, fmt.Sprintf("link %d", i))))
		}
	}
	if strings.Contains(features, "ea_inode") {
		for i := range 4 {
			must(t, unix.Lsetxattr(filepath.Join(source, "few"), fmt.Sprintf("user.large %d", i), content(uint64(i), 3000*(i+1)), 0))
		}
	}
	testneed.Tools(t, "mke2fs", "e2fsck")
	// The same identity each time: what a change hits should not depend on it.
	const uuid = "5eed5eed-0000-4000-8000-000000000001"
	path := mkfs(t, 4, false, append([]string{"-t", "ext4", "-b", "1024", "-N", "128", "-U", uuid, "-E", "hash_seed=" + uuid,
		"-O", "^has_journal,^resize_inode", "-d", source}, args...)...)
	var exit *exec.ExitError
	if out, err := exec.Command("e2fsck", "-fyD", path).CombinedOutput(); errors.As(err, &exit) && exit.ExitCode() == 1 {
		// mke2fs does not count the blocks of attributes' inodes.
	} else if err != nil {
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
	b, err := os.ReadFile(path)
	must(t, err)
	return b
}

// cryptImage is a small image whose names and targets are taken for encrypted, in one
// directory, and its root for case-folded.
func cryptImage(t testing.TB) []byte {
	t.Helper()
	image := smallImage(t, "-O", "^metadata_csum,encrypt,casefold")
	fs, err := New().Open(inMemory(image))
	must(t, err)
	le := binary.LittleEndian
	flag := func(flags uint32, names ...string) (in []byte) {
		in = image[inodeOffset(t, fs, lookup(t, fs, names...).Ino):]
		le.PutUint32(in[0x20:], le.Uint32(in[0x20:])|flags)
		return in
	}
	flag(inodeEncrypt, "dir")
	flag(inodeEncrypt, "fragmented")
	var in inode
	must(t, fs.(*FS).inode(lookup(t, fs, "slow link").Ino, &in))
	r, err := fs.(*FS).mapRun(&in, 0)
	must(t, err)
	le.PutUint16(image[r.phys*1024:], uint16(in.size-targetHeader))
	flag(inodeEncrypt, "slow link")
	link := flag(inodeEncrypt, "link")
	le.PutUint32(link[0x4:], 40)
	le.PutUint16(link[0x28:], 38)
	flag(inodeCasefold)
	return image
}

// walkBounded fails a test where reading an image does not end soon.
func walkBounded(t testing.TB, what any, d backend.Device) error {
	t.Helper()
	type result struct{ err error }
	done := make(chan result, 1)
	start := cputime.Now()
	go func() {
		fs, err := New().Open(d)
		if err == nil {
			_, _, err = walk(fs, 5000, 16*mib)
			_, serr := fs.StatFS()
			if err == nil {
				err = serr
			}
			fs.Close()
		}
		done <- result{err}
	}()
	select {
	case r := <-done:
		if took := start.Used(); took > 5*time.Second {
			t.Errorf("%v: took %v", what, took)
		}
		return r.err
	case <-time.After(30 * time.Second):
		t.Fatalf("%v: does not end", what)
		return nil
	}
}

// knownError tells whether an error is of those that a corrupt image may give.
func knownError(err error) bool {
	for _, known := range []error{backend.ErrCorrupt, backend.ErrUnsupported, backend.ErrStale, backend.ErrNotDir, backend.ErrNotExist, backend.ErrTooLong,
		backend.ErrNoAttr, backend.ErrIsDirectory, backend.ErrInvalid} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// metadataBlocks are the blocks of an image that are read on a walk but as content.
func metadataBlocks(t testing.TB, image []byte) []int {
	fs, err := New().Open(inMemory(image))
	must(t, err)
	entries, _, err := walk(fs, 5000, 16*mib)
	must(t, err)
	if entries < 60 {
		t.Fatalf("%d entries", entries)
	}
	var blocks []int
	for key := range fs.(*FS).cache.runs {
		for i := range key.n {
			blocks = append(blocks, int(key.block)+i)
		}
	}
	blocks = append(blocks, 1)
	slices.Sort(blocks) // the cache is a map: a seed would choose other blocks each time
	return blocks
}

func TestFS_SurvivesChangedMetadata(t *testing.T) {
	for _, v := range []struct {
		name  string
		args  []string
		image func(testing.TB) []byte // nil: a smallImage with args
		times int
	}{
		{"extents", []string{"-O", "^metadata_csum"}, nil, 300},
		{"indirect", []string{"-O", "^metadata_csum,^extents,^64bit"}, nil, 300},
		{"checksums", nil, nil, 100},
		{"inline data and attributes in inodes", []string{"-O", "^metadata_csum,inline_data,ea_inode"}, nil, 300},
		{"inline data in inodes of 512 bytes", []string{"-I", "512", "-O", "^metadata_csum,inline_data,^extents,^64bit"}, nil, 300},
		{"encrypted and case-folded", nil, cryptImage, 300},
		{"meta_bg", []string{"-g", "256", "-O", "^metadata_csum,^resize_inode,meta_bg,large_dir"}, nil, 100},
	} {
		t.Run(v.name, func(t *testing.T) {
			var good []byte
			if v.image != nil {
				good = v.image(t)
			} else {
				good = smallImage(t, v.args...)
			}
			if err := walkBounded(t, "the image as it was made", inMemory(good)); err != nil {
				t.Fatal(err)
			}
			blocks := metadataBlocks(t, good)
			r := rand.New(rand.NewPCG(1, 2))
			failed := 0
			for i := range v.times {
				b := append([]byte(nil), good...)
				for range 1 + i%4 {
					at := blocks[r.IntN(len(blocks))]*1024 + r.IntN(1024)
					switch r.IntN(3) {
					case 0:
						b[at] ^= 1 << r.IntN(8)
					case 1:
						b[at] = byte(r.Uint32())
					case 2:
						binary.LittleEndian.PutUint32(b[at&^3:], []uint32{0, 1, 0xffffffff, 0x7fffffff, 0x80000000, r.Uint32(), 4096}[r.IntN(7)])
					}
				}
				if err := walkBounded(t, i, inMemory(b)); err != nil {
					failed++
					if !knownError(err) {
						t.Errorf("change %d: an error of no kind: %v", i, err)
					}
				}
			}
			t.Logf("%d of %d changes were errors", failed, v.times)
			if failed < v.times/10 {
				t.Errorf("only %d of %d changes were errors", failed, v.times)
			}
		})
	}
}

// With checksums no change of a metadata block goes unnoticed, but in bytes that no
// checksum covers.
func TestChecksums_FindChangesNamingInodeAndBlock(t *testing.T) {
	good := smallImage(t)
	fs, err := New().Open(inMemory(good))
	must(t, err)
	x := fs.(*FS)
	var file, dir inode
	must(t, x.inode(lookup(t, fs, "fragmented").Ino, &file))
	must(t, x.inode(lookup(t, fs, "dir").Ino, &dir))
	root := extentNode(file.block[:])
	if root.depth() == 0 || file.xattrBlock == 0 || !x.indexed(&dir) {
		t.Fatalf("depth %d, attribute block %d, flags 0x%x", root.depth(), file.xattrBlock, dir.flags)
	}
	table, err := x.inodeTable(0)
	must(t, err)
	dirRun, err := x.mapRun(&dir, 0)
	must(t, err)
	leafRun, err := x.mapRun(&dir, 1)
	must(t, err)
	for _, v := range []struct {
		what, says string
		at         uint64
		do         func(fs backend.FS) error
	}{
		{"a group descriptor", "descriptor: checksum", 2*1024 + 4, func(fs backend.FS) error { _, err := fs.Attr(2); return err }},
		{"an inode", "checksum is 0x", table*1024 + uint64(file.ino-1)*256 + 2, func(fs backend.FS) error { _, err := fs.Attr(uint64(file.ino)); return err }},
		{"an inode's attributes", "checksum is 0x", table*1024 + uint64(file.ino)*256 - 1, func(fs backend.FS) error { _, err := fs.Attr(uint64(file.ino)); return err }},
		{"an extent", "extent block", root.child(0)*1024 + 12 + 8, func(fs backend.FS) error {
			f, err := fs.OpenFile(uint64(file.ino))
			if err == nil {
				_, err = f.ReadAt(make([]byte, 10), 0)
			}
			return err
		}},
		{"an attribute", "attribute block", file.xattrBlock*1024 + 1023, func(fs backend.FS) error { _, err := fs.ListXattr(uint64(file.ino)); return err }},
		{"the htree's root", "directory block", dirRun.phys*1024 + 0x28, func(fs backend.FS) error { _, err := fs.Lookup(uint64(dir.ino), "x"); return err }},
		{"an entry", "directory block", (leafRun.phys+1-leafRun.logical)*1024 + 9, func(fs backend.FS) error {
			return fs.ReadDir(uint64(dir.ino), 0, false, func(*backend.DirEntry) bool { return true })
		}},
	} {
		b := append([]byte(nil), good...)
		b[v.at] ^= 0x40
		fs, err := New().Open(inMemory(b))
		must(t, err)
		if err := v.do(fs); !errors.Is(err, backend.ErrCorrupt) || !strings.Contains(err.Error(), v.says) || !strings.Contains(err.Error(), "checksum is 0x") {
			t.Errorf("%s changed: %v", v.what, err)
		}
	}
}

func TestExtents_RefuseLoopsAndDisorder(t *testing.T) {
	good := smallImage(t, "-O", "^metadata_csum")
	fs, err := New().Open(inMemory(good))
	must(t, err)
	x := fs.(*FS)
	ino := lookup(t, fs, "fragmented").Ino
	var in inode
	must(t, x.inode(ino, &in))
	child := int(extentNode(in.block[:]).child(0)) * 1024
	le := binary.LittleEndian
	for what, change := range map[string]func(b []byte){
		"magic":                 func(b []byte) { b[0] = 0 },
		"more entries than fit": func(b []byte) { le.PutUint16(b[2:], 85); le.PutUint16(b[4:], 85) },
		"more than the maximum": func(b []byte) { le.PutUint16(b[4:], 1) },
		"as deep as its parent": func(b []byte) { le.PutUint16(b[6:], 1) },
		"an empty extent":       func(b []byte) { le.PutUint16(b[12+4:], 0) },
		"overlapping extents":   func(b []byte) { le.PutUint16(b[12+4:], 30) },
		"extents out of order":  func(b []byte) { le.PutUint32(b[24:], 0) },
		"block 0":               func(b []byte) { le.PutUint32(b[12+8:], 0) },
		"block past the end":    func(b []byte) { le.PutUint32(b[12+8:], 1<<30) },
		"block past 32 bits":    func(b []byte) { le.PutUint16(b[12+6:], 0xffff) },
		"out of the index":      func(b []byte) { le.PutUint32(b[12*extentNode(b).count():], 0xffffff00) },
	} {
		b := append([]byte(nil), good...)
		change(b[child:])
		fs, err := New().Open(inMemory(b))
		must(t, err)
		f, err := fs.OpenFile(ino)
		must(t, err)
		if _, err := f.ReadAt(make([]byte, 10), 0); !errors.Is(err, backend.ErrCorrupt) || !strings.Contains(err.Error(), "extent block") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestReadDir_RefusesWrongEntries(t *testing.T) {
	good := smallImage(t, "-O", "^metadata_csum,^dir_index")
	fs, err := New().Open(inMemory(good))
	must(t, err)
	x := fs.(*FS)
	ino := lookup(t, fs, "dir").Ino
	var in inode
	must(t, x.inode(ino, &in))
	r, err := x.mapRun(&in, 0)
	must(t, err)
	const entry = 24 // after "." and ".."
	le := binary.LittleEndian
	for what, change := range map[string]func(b []byte){
		"length 0":            func(b []byte) { le.PutUint16(b[entry+4:], 0) },
		"length 8":            func(b []byte) { le.PutUint16(b[entry+4:], 8) },
		"length 13":           func(b []byte) { le.PutUint16(b[entry+4:], 13) },
		"shorter than a name": func(b []byte) { b[entry+6] = 250 },
		"crosses the block":   func(b []byte) { le.PutUint16(b[entry+4:], 1024) },
		"no such inode":       func(b []byte) { le.PutUint32(b[entry:], 1<<30) },
		"an empty name":       func(b []byte) { b[entry+6] = 0 },
	} {
		b := append([]byte(nil), good...)
		change(b[r.phys*1024:])
		fs, err := New().Open(inMemory(b))
		must(t, err)
		err = fs.ReadDir(ino, 0, true, func(*backend.DirEntry) bool { return true })
		if !errors.Is(err, backend.ErrCorrupt) || !strings.Contains(err.Error(), "directory block") {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := fs.Lookup(ino, "not there"); !errors.Is(err, backend.ErrCorrupt) {
			t.Errorf("%s, lookup: %v", what, err)
		}
	}
	// An entry of a reserved inode leads nowhere; its directory can be listed.
	b := append([]byte(nil), good...)
	le.PutUint32(b[r.phys*1024+entry:], 8)
	name := string(b[r.phys*1024+entry+8:][:b[r.phys*1024+entry+6]])
	fs, err = New().Open(inMemory(b))
	must(t, err)
	without := 0
	must(t, fs.ReadDir(ino, 0, true, func(e *backend.DirEntry) bool {
		if e.Attr == nil {
			without++
		}
		return true
	}))
	if without != 1 {
		t.Errorf("%d entries without an Attr", without)
	}
	if _, err := fs.Lookup(ino, name); !errors.Is(err, backend.ErrCorrupt) {
		t.Errorf("a name of a reserved inode: %v", err)
	}
}

// A directory that claims 4 GiB, and a file of the largest size: only what is mapped is
// walked.
func TestFS_HugeSizesCostNothing(t *testing.T) {
	good := smallImage(t, "-O", "^metadata_csum")
	fs, err := New().Open(inMemory(good))
	must(t, err)
	x := fs.(*FS)
	table, err := x.inodeTable(0)
	must(t, err)
	b := append([]byte(nil), good...)
	dir, file := lookup(t, fs, "dir").Ino, lookup(t, fs, "fragmented").Ino
	raw := func(ino uint64) []byte { return b[table*1024+(ino-1)*256:] }
	binary.LittleEndian.PutUint32(raw(dir)[4:], 0xfffffc00)
	binary.LittleEndian.PutUint32(raw(file)[4:], 0xffffffff)
	binary.LittleEndian.PutUint32(raw(file)[0x6c:], 0x7fffffff)
	fs, err = New().Open(inMemory(b))
	must(t, err)
	start := cputime.Now()
	n := 0
	must(t, fs.ReadDir(dir, 0, false, func(*backend.DirEntry) bool { n++; return true }))
	if n != 60 {
		t.Errorf("%d entries", n)
	}
	f, err := fs.OpenFile(file)
	must(t, err)
	if end, err := backend.NextData(f, 1<<40); !errors.Is(err, backend.ErrRange) {
		t.Errorf("NextData: %d, %v", end, err)
	}
	if end, err := backend.NextHole(f, 1<<62); err != nil || end != 1<<62 {
		t.Errorf("NextHole: %d, %v", end, err)
	}
	buf := []byte("not zeros")
	if n, err := f.ReadAt(buf, 1<<62); n != len(buf) || err != nil || string(buf) != strings.Repeat("\x00", len(buf)) {
		t.Errorf("ReadAt: %d, %v, %q", n, err, buf)
	}
	if took := start.Used(); took > time.Second {
		t.Errorf("took %v", took)
	}
}

func TestFS_ConcurrentWalksAgree(t *testing.T) {
	image := smallImage(t)
	fs, err := New().Open(inMemory(image))
	must(t, err)
	fs.(*FS).cache.max = 8 << 10 // evicts all the time
	wantEntries, wantBytes, err := walk(fs, 5000, 16*mib)
	must(t, err)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				if n, bytes, err := walk(fs, 5000, 16*mib); n != wantEntries || bytes != wantBytes || err != nil {
					t.Errorf("%d entries, %d bytes, %v; alone it was %d and %d", n, bytes, err, wantEntries, wantBytes)
				}
				if _, err := fs.StatFS(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// patched is an image with a change.
type patched struct {
	backend.Device
	at    int64
	patch []byte
}

func (p patched) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.Device.ReadAt(b, off)
	for i, v := range p.patch {
		if at := p.at + int64(i) - off; at >= 0 && at < int64(n) {
			b[at] = v
		}
	}
	return n, err
}

// FuzzOpenAndWalk changes images where a fuzzer says: two runs of bytes, in one of the
// images.
func FuzzOpenAndWalk(f *testing.F) {
	images := [][]byte{
		smallImage(f, "-O", "^metadata_csum"),
		smallImage(f, "-O", "^metadata_csum,^extents,^64bit"),
		smallImage(f, "-O", "^metadata_csum,^dir_index,uninit_bg"),
		smallImage(f, "-g", "256", "-O", "^metadata_csum,^resize_inode,meta_bg,large_dir"),
		smallImage(f, "-g", "512", "-O", "^resize_inode,sparse_super2"),
		smallImage(f, "-O", "^metadata_csum,inline_data,ea_inode"),
		cryptImage(f),
	}
	for i, image := range images {
		for _, block := range metadataBlocks(f, image) {
			at := block * 1024
			f.Add(byte(i), uint32(at), image[at:at+64], uint32(superOffset), image[superOffset:superOffset+0x100])
		}
	}
	f.Fuzz(func(t *testing.T, which byte, at1 uint32, patch1 []byte, at2 uint32, patch2 []byte) {
		image := images[int(which)%len(images)]
		n := uint32(len(image))
		d := patched{patched{inMemory(image), int64(at1 % n), patch1}, int64(at2 % n), patch2}
		if err := walkBounded(t, "", d); err != nil && !knownError(err) {
			t.Errorf("an error of no kind: %v", err)
		}
	})
}
