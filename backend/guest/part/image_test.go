package part_test

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"
)

const (
	mib   = 1 << 20
	guid  = "8d2e6c7b-3f1a-4b5c-9d8e-0123456789ab"
	guid2 = "8d2e6c7b-3f1a-4b5c-9d8e-0123456789cd"
)

var le = binary.LittleEndian

// image is a file as a Device.
type image struct {
	*os.File
	size int64
}

func (i image) Size() int64 { return i.size }

func openImage(t testing.TB, path string) backend.Device {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return image{f, st.Size()}
}

func newImage(t testing.TB, sizeBytes int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, sizeBytes); err != nil {
		t.Fatal(err)
	}
	return path
}

func run(t testing.TB, stdin, name string, args ...string) string {
	t.Helper()
	testneed.Tools(t, name)
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// sfdisk writes a table, on a file or (to have other sectors than 512) a device.
func sfdisk(t testing.TB, path, script string) {
	t.Helper()
	run(t, script, "sfdisk", "-q", "--no-reread", "--no-tell-kernel", "--wipe", "never", path)
}

// edit changes an image.
func edit(t testing.TB, path string, change func(b []byte)) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	change(b)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// loop attaches an image to a loop device with sectors of that size, and detaches it when the test ends.
func loop(t testing.TB, path string, sector string, args ...string) string {
	t.Helper()
	testneed.Loop(t)
	dev := strings.TrimSpace(run(t, "", "losetup", append([]string{"-f", "--show", "-b", sector}, append(args, path)...)...))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup -d %s: %v\n%s", dev, err, out)
		}
	})
	return dev
}

// resum makes a changed GPT header valid again.
func resum(h []byte) {
	size := le.Uint32(h[12:])
	le.PutUint32(h[16:], 0)
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:size]))
}

// mbrEntry sets an entry of the table in a sector.
func mbrEntry(sector []byte, i int, kind byte, start, sectors uint32) {
	e := sector[446+16*i:][:16]
	clear(e)
	e[4] = kind
	le.PutUint32(e[8:], start)
	le.PutUint32(e[12:], sectors)
	sector[510], sector[511] = 0x55, 0xaa
}

// sumEntries makes the checksum of a GPT header's entries valid.
func sumEntries(h, entries []byte) { le.PutUint32(h[88:], crc32.ChecksumIEEE(entries)) }
