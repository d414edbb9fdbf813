package labxen

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// image is what is not zero on a disk.
type image []extent

type extent struct {
	offset int64
	data   []byte
}

const extentBytes = 64 << 10

// readImage reads a file.
func readImage(t testing.TB, path string) image {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var found image
	zeroes := make([]byte, extentBytes)
	for at := int64(0); ; at += extentBytes {
		at, err = unix.Seek(int(file.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // there is no more
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		at = at / extentBytes * extentBytes
		data := make([]byte, extentBytes)
		n, err := file.ReadAt(data, at)
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if !bytes.Equal(data, zeroes) {
			found = append(found, extent{at, data[:n]})
		}
	}
}

// write writes it to a disk of zeroes.
func (i image) write(t testing.TB, path string) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range i {
		if _, err := file.WriteAt(e.data, e.offset); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(file.Sync(), file.Close()); err != nil {
		t.Fatal(err)
	}
}

// sizeBytes is the size of a file or a block device.
func sizeBytes(t testing.TB, path string) int64 {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	return size
}
