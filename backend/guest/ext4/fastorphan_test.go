package ext4

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

// frozenOrphans is an image whose log is empty, with files without names that were open when it was frozen.
func frozenOrphans(t *testing.T, features string) (image string, inodes []uint32) {
	t.Helper()
	testneed.Loop(t)
	testneed.Tools(t, "mke2fs", "mkfs.xfs")
	const freeze, thaw = 0xc0045877, 0xc0045878 // FIFREEZE, FITHAW
	image = filepath.Join(reflinkDir(t), "image")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 32*mib))
	command(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-O", "fast_commit,"+features, "-J", "size=4,fast_commit_size=256", image)
	dir, umount := mount(t, image, "rw")
	var open []*os.File
	for i := range 6 {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
		must(t, err)
		_, err = f.Write(content(uint64(i), 5000+i*3000))
		must(t, err)
		var st unix.Stat_t
		must(t, unix.Fstat(int(f.Fd()), &st))
		open, inodes = append(open, f), append(inodes, uint32(st.Ino))
	}
	for _, f := range open {
		must(t, os.Remove(f.Name()))
	}
	d, err := os.Open(dir)
	must(t, err)
	must(t, unix.IoctlSetInt(int(d.Fd()), freeze, 0))
	cut := clone(t, image, image+".frozen")
	must(t, unix.IoctlSetInt(int(d.Fd()), thaw, 0))
	must(t, d.Close())
	for _, f := range open {
		must(t, f.Close())
	}
	umount()
	return cut, inodes
}

// What a fast commit deleted is no fault of the list of orphans that it is still in.
func TestFastCommits_DeleteOrphansOfTheListAndTheOthersAreCleanedUp(t *testing.T) {
	for _, c := range []struct {
		name, features string
		deleted        []int // of the six
	}{
		{"a list, one in the middle", "^orphan_file", []int{3}},
		{"a list, the first, two in a row and the last", "^orphan_file", []int{5, 3, 2, 0}},
		{"a list, all", "^orphan_file", []int{0, 1, 2, 3, 4, 5}},
		{"an orphan file", "orphan_file", []int{1, 4}},
	} {
		t.Run(c.name, func(t *testing.T) {
			image, inodes := frozenOrphans(t, c.features)
			before, err := New().Open(openDevice(t, image))
			must(t, err)
			t.Cleanup(func() { before.Close() })
			// What is to be cleaned up is there before: the kernel's own list, or its file.
			raw := before.(*FS)
			f, err := os.OpenFile(image, os.O_RDWR, 0)
			must(t, err)
			defer f.Close()
			head := make([]byte, superBytes)
			_, err = f.ReadAt(head, superOffset)
			must(t, err)
			if first := binary.LittleEndian.Uint32(head[superLastOrphanAt:]); (first == inodes[5]) != (c.features == "^orphan_file") {
				t.Fatalf("the first orphan is %d of %v", first, inodes)
			}

			a := newFastArea(raw.sb.blockBytes(), fastTID(t, raw))
			for _, i := range c.deleted {
				// Twice, and with another next orphan than the one in the list. Its blocks are those of before.
				for range 2 {
					a.inode(raw, rootIno, inodes[i], 0, func(raw []byte) {
						binary.LittleEndian.PutUint16(raw, unix.S_IFREG|0o600)
						binary.LittleEndian.PutUint32(raw[inodeDtimeAt:], 77)
					})
				}
			}
			a.tail()
			putFastArea(t, image, a.area)
			// Its superblock is one without orphans.
			le := binary.LittleEndian
			le.PutUint32(head[0x60:], le.Uint32(head[0x60:])|incompatRecover)
			le.PutUint32(head[0x3fc:], crc32c(^uint32(0), head[:0x3fc]))
			_, err = f.WriteAt(head, superOffset)
			must(t, err)

			fs, _ := openImage(t, image)
			if w := fs.Warnings(); len(w) != 1 || !strings.Contains(w[0], "deleted file that was still open") {
				t.Errorf("warnings %q", w)
			}
			e := newEditor(fs)
			for i, ino := range inodes {
				if used, err := e.inodeUsed(ino); err != nil || used {
					t.Errorf("file %d, inode %d: in use %v, %v", i, ino, used, err)
				}
			}
			b, err := e.superView()
			must(t, err)
			if first := binary.LittleEndian.Uint32(b[superLastOrphanAt:]); first != 0 {
				t.Errorf("the first orphan is %d", first)
			}
			e.discard()
			out := writeOut(t, fs, image, image+".out")
			recount(t, out)
			if list := faults(t, out); len(list) != 0 {
				t.Errorf("e2fsck finds %q", list)
			}
		})
	}
}
