package ext4

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

// The kernel writes a file's Merkle tree after its content, past its size, from the next 64 KiB
// on: a reader sees the content only.
func TestOpenFile_OfVerityFilesEndsBeforeTheirMerkleTree(t *testing.T) {
	testneed.Loop(t)
	testneed.Tools(t, "mke2fs")
	const size, flags = 150_000, 0x100000 | inodeExtents
	path := mkfs(t, 32, false, "-t", "ext4", "-O", "verity")
	want := content(1, size)
	populate(t, path, func(dir string) {
		f, err := os.Create(filepath.Join(dir, "file"))
		must(t, err)
		defer f.Close()
		_, err = f.Write(want)
		must(t, err)
		_, err = f.WriteAt(bytes.Repeat([]byte("tree"), 5000), 192<<10)
		must(t, err)
	})
	debugfs(t, path, fmt.Sprintf("sif file size %d", size), fmt.Sprintf("sif file flags %d", flags))
	dir, _ := mount(t, path, "ro")
	var st unix.Stat_t
	must(t, unix.Lstat(filepath.Join(dir, "file"), &st))
	fs, _ := openImage(t, path)
	a := lookup(t, fs, "file")
	if a.SizeBytes != st.Size || a.Blocks512 != st.Blocks || st.Size != size {
		t.Errorf("%+v; the kernel: size %d, %d blocks", a, st.Size, st.Blocks)
	}
	f, err := fs.OpenFile(a.Ino)
	must(t, err)
	got := make([]byte, size+100_000)
	if n, err := f.ReadAt(got, 0); n != size || err != io.EOF || !bytes.Equal(got[:n], want) {
		t.Errorf("%d bytes, %v", n, err)
	}
	if hole, err := f.(*file).NextHole(0); err != nil || hole != size {
		t.Errorf("NextHole: %d, %v", hole, err)
	}
}
