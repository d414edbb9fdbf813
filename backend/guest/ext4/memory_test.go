package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"testing"

	"domfs/backend"
)

const (
	millionEnv       = "DOMFS_EXT4_MILLION" // the image, for the process that is measured
	millionPerBlock  = 16                   // entries
	millionInodes    = 65536
	millionDirs      = 1024 // directories of as many entries, from millionFirstIno on
	millionFirstIno  = 12
	millionRSSKiB    = 256 << 10
	millionRegionAt  = 40_000 // block, of aliasBlocks
	millionDirBlocks = 64
)

// millionImage is an image whose root directory has a million entries, and which has a
// million more in 1024 directories, all of 65,000 inodes: more than the cache holds. The entries' blocks are
// part of each directory more than once.
func millionImage(t *testing.T) string {
	t.Helper()
	path := mkfs(t, 64, false, "-t", "ext4", "-b", "1024", "-N", fmt.Sprint(millionInodes), "-I", "256", "-O", "^metadata_csum,^has_journal,^resize_inode")
	b, err := os.ReadFile(path)
	must(t, err)
	fs, err := New().Open(inMemory(b))
	must(t, err)
	defer fs.Close()
	x := fs.(*FS)
	if x.sb.inodes != millionInodes || x.sb.inodeBytes != 256 {
		t.Fatalf("%d inodes of %d bytes", x.sb.inodes, x.sb.inodeBytes)
	}
	le := binary.LittleEndian
	// extents makes an inode's blocks those of the region, from the first on, as often as said.
	extents := func(in []byte, first, blocks, times int) {
		le.PutUint32(in[0x4:], uint32(times*blocks*1024))
		le.PutUint32(in[0x20:], inodeExtents)
		node := in[0x28:][:blockArray]
		clear(node)
		le.PutUint16(node, extentMagic)
		le.PutUint16(node[2:], uint16(times))
		le.PutUint16(node[4:], 4)
		for i := range times {
			e := extentNode(node).entry(i)
			le.PutUint32(e, uint32(i*blocks))
			le.PutUint16(e[4:], uint16(blocks))
			le.PutUint32(e[8:], uint32(millionRegionAt+first))
		}
	}
	for ino := rootIno; ino <= millionInodes; ino++ {
		if ino > rootIno && ino < millionFirstIno {
			continue
		}
		table, err := x.inodeTable(uint64(ino-1) / uint64(x.sb.inodesPerGroup))
		must(t, err)
		in := b[table*1024+uint64(ino-1)%uint64(x.sb.inodesPerGroup)*256:][:256]
		le.PutUint16(in[0x1a:], 1)
		switch {
		case ino == rootIno:
			extents(in, 0, aliasBlocks, 4)
		case ino < millionFirstIno+millionDirs:
			le.PutUint16(in, 0o40755)
			extents(in, (ino-millionFirstIno)*(aliasBlocks/millionDirs), millionDirBlocks/4, 4)
		default:
			le.PutUint16(in, 0o100644)
			le.PutUint32(in[0x20:], inodeExtents)
		}
	}
	for i := range aliasBlocks * millionPerBlock {
		e := b[millionRegionAt*1024+i*(1024/millionPerBlock):]
		name := fmt.Sprintf("%d a name of which there are many", i)
		// Neighbours' inodes are neighbours, but not always.
		le.PutUint32(e, uint32(millionFirstIno+(i/64*64*7919+i%64)%(millionInodes-millionFirstIno)))
		le.PutUint16(e[4:], 1024/millionPerBlock)
		e[6] = byte(len(name))
		copy(e[direntHeader:], name)
	}
	must(t, os.WriteFile(path, b, 0o600))
	return path
}

// The peak is that of a process of its own.
func TestReadDir_OfAMillionEntriesStaysBelow256MiB(t *testing.T) {
	if path := os.Getenv(millionEnv); path != "" {
		walkMillion(t, path)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestReadDir_OfAMillionEntriesStaysBelow256MiB$", "-test.v")
	cmd.Env = append(os.Environ(), millionEnv+"="+millionImage(t))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	m := regexp.MustCompile(`entries (\d+), peak (\d+) KiB`).FindSubmatch(out)
	if m == nil {
		t.Fatalf("%s", out)
	}
	entries, err := strconv.Atoi(string(m[1]))
	must(t, err)
	peak, err := strconv.Atoi(string(m[2]))
	must(t, err)
	t.Logf("%d entries, peak %d KiB", entries, peak)
	if want := 2 * 4 * aliasBlocks * millionPerBlock; entries != want || peak > millionRSSKiB || peak < 1024 {
		t.Errorf("%d entries of %d, peak %d KiB of at most %d", entries, want, peak, millionRSSKiB)
	}
}

func walkMillion(t *testing.T, path string) {
	fs, _ := openImage(t, path)
	entries := 0
	list := func(dir uint64) {
		must(t, fs.ReadDir(dir, 0, true, func(e *backend.DirEntry) bool {
			if e.Attr == nil {
				t.Errorf("inode %d has no Attr", e.Ino)
			}
			entries++
			return e.Attr != nil
		}))
	}
	list(rootIno)
	for i := range uint64(millionDirs) {
		list(millionFirstIno + i)
	}
	if _, err := fs.Lookup(rootIno, "absent"); !errors.Is(err, backend.ErrNotExist) {
		t.Error(err)
	}
	for ino := uint64(millionFirstIno + millionDirs); ino < millionInodes; ino += 16 {
		f, err := fs.OpenFile(ino)
		must(t, err)
		must(t, f.Close())
	}
	status, err := os.ReadFile("/proc/self/status")
	must(t, err)
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	if m == nil {
		t.Fatalf("%s", status)
	}
	fmt.Printf("entries %d, peak %s KiB\n", entries, m[1])
}
