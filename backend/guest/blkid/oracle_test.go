package blkid_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"
	"domfs/backend/guest/blkid"
)

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

// newImage makes a sparse file.
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

// kept holds the images that several tests use.
var kept string

func TestMain(m *testing.M) {
	var err error
	if kept, err = os.MkdirTemp("", "blkid-"); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(kept)
	os.Exit(code)
}

// built is an image of that kind, made once. Who changes it changes it back.
func built(t testing.TB, k kind) string {
	t.Helper()
	path := filepath.Join(kept, strings.ReplaceAll(k.name, " ", "_"))
	if _, err := os.Stat(path); err == nil {
		return path
	}
	made := newImage(t, k.size)
	k.build(t, made)
	if err := os.Rename(made, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// run runs a tool; a missing one skips the test.
func run(t testing.TB, stdin, name string, args ...string) string {
	t.Helper()
	testneed.Tools(t, name)
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "SOURCE_DATE_EPOCH=1700000000")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// writeAt overwrites part of an image.
func writeAt(t testing.TB, path string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func readAt(t testing.TB, path string, off int64, n int) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	return b
}

var hexEscape = regexp.MustCompile(`\\x[0-9a-f]{2}`)

// blkidSays asks the real blkid. Label and UUID come from its udev format, the only
// one that loses no byte.
func blkidSays(t testing.TB, path string) backend.Content {
	t.Helper()
	testneed.Tools(t, "blkid")
	ask := func(format string) map[string]string {
		out, err := exec.Command("blkid", "-p", "-o", format, path).Output()
		var exit *exec.ExitError
		if errors.As(err, &exit) && (exit.ExitCode() == 2 || exit.ExitCode() == 8) {
			return nil // nothing, or ambiguous
		}
		if err != nil {
			t.Fatalf("blkid %s: %v", path, err)
		}
		vals := map[string]string{}
		for line := range strings.Lines(string(out)) {
			if k, v, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "="); ok {
				vals[k] = v
			}
		}
		return vals
	}
	export := ask("export")
	if export["TYPE"] == "" {
		return backend.Content{Type: export["PTTYPE"], UUID: export["PTUUID"]}
	}
	udev := ask("udev")
	decode := func(s string) string {
		return hexEscape.ReplaceAllStringFunc(s, func(s string) string {
			n, _ := strconv.ParseUint(s[2:], 16, 8)
			return string([]byte{byte(n)})
		})
	}
	return backend.Content{Type: export["TYPE"], UUID: decode(udev["ID_FS_UUID_ENC"]), Label: decode(udev["ID_FS_LABEL_ENC"])}
}

// sameAsBlkid compares, and returns what both say.
func sameAsBlkid(t testing.TB, path string) backend.Content {
	t.Helper()
	want := blkidSays(t, path)
	got, err := blkid.New().Probe(openImage(t, path))
	if err != nil {
		t.Errorf("Probe: %v", err)
	} else if got != want {
		t.Errorf("Probe says %+q, blkid says %+q", got, want)
	}
	return want
}
