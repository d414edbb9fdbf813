package image

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/run"
)

func TestQemuFailed_KnowsWhatQEMUSays(t *testing.T) {
	const image = `json:{"driver":"qcow2","file":{"driver":"file","filename":"/proc/1/fd/7"},"backing":null}`
	for _, c := range []struct {
		stderr string // recorded from QEMU 7.2, but for the last three, of its sources
		want   error
		says   string
	}{
		{"qemu-img: Can't resize a v2 image which has snapshots\n", backend.ErrUnsupported, "qemu-img snapshot -d"},
		{"qemu-img: offset(9223372036854775296) exceeds maximum(9223372035781033984)\n", backend.ErrNoSpace, "large"},
		{"qemu-img: Failed to grow the L1 table: File too large\n", backend.ErrNoSpace, "large"},
		{"qemu-img: Could not open '" + image + "': Failed to get \"write\" lock\nIs another process using the image [/proc/1/fd/7]?\n", backend.ErrBusy, "Could not open '/images/a': Failed"},
		{"qemu-img: Could not open '" + image + "': Image is not in qcow2 format\n", backend.ErrIO, "not in qcow2 format"},
		{"qemu-img: Failed to grow the L1 table: No space left on device\n", backend.ErrNoSpace, "free space"},
		{"qemu-img: Could not open '" + image + "': Could not open '/proc/1/fd/7': Permission denied\n", backend.ErrAccess, "root"},
		{"qemu-img: Could not open '" + image + "': qcow2: Image is corrupt; cannot be opened read/write\n", backend.ErrCorrupt, "qemu-img check"},
		{"", backend.ErrIO, "exit status 1"},
	} {
		err := qemuFailed("resize", "/images/a", image, &run.Error{Argv: []string{"qemu-img", "resize"}, Exit: 1, Stderr: c.stderr})
		text := err.Error()
		if !errors.Is(err, c.want) || !strings.Contains(text, c.says) || !strings.HasPrefix(text, "resize /images/a: ") || strings.Contains(text, "json:") || strings.Contains(text, "\n") {
			t.Errorf("%q: %v; want %v with %q", c.stderr, err, c.want, c.says)
		}
	}
	if err := qemuFailed("resize", "/images/a", image, &run.Error{Exit: -1, Err: backend.ErrTimeout}); !errors.Is(err, backend.ErrTimeout) {
		t.Errorf("a timeout: %v", err)
	}
}

// replaying makes the store's qemu-img answer what is recorded, whatever descriptors it is told.
func replaying(t *testing.T, s *Store, path string, sizeBytes string, c run.Call) {
	t.Helper()
	f, st, err := openImage(path)
	if err != nil {
		t.Fatal(err)
	}
	// The next file to be opened has the number of this one.
	image, err := chain{{f: f, st: st, format: formats[0]}}.qemuOptions()
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	c.Argv = []string{"qemu-img", "resize", "-q", "--", image, sizeBytes}
	transcript := &run.Transcript{Calls: []run.Call{c}}
	s.run = transcript.Replay()
	t.Cleanup(func() {
		if err := transcript.Check(); err != nil {
			t.Error(err)
		}
	})
}

func TestResize_VerifiesWhatQEMUDid(t *testing.T) {
	for name, c := range map[string]struct {
		call run.Call
		want error
		says string
	}{
		"nothing":       {run.Call{}, backend.ErrIO, "1048576"},
		"not installed": {run.Call{Exit: -1, Failure: "missing"}, backend.ErrUnsupported, "qemu-utils"},
		"late":          {run.Call{Exit: -1, Failure: "timeout"}, backend.ErrTimeout, "resize"},
		"failed":        {run.Call{Exit: 1, Stderr: run.Text("qemu-img: Failed to grow the L1 table: File too large\n")}, backend.ErrNoSpace, "large"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "a.qcow2")
			qemuImage(t, path, 1<<20, "")
			s := New(nil, formats, nil)
			v := qcow2Volume(t, s, path)
			replaying(t, s, path, "2097152", c.call)
			_, err := s.Resize(t.Context(), v, 2<<20)
			if !errors.Is(err, c.want) || errors.Is(err, backend.ErrNotExist) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) {
				t.Errorf("Resize = %v; want %v with %q", err, c.want, c.says)
			}
		})
	}
}

func TestResize_OfQcow2WaitsForACopy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.qcow2")
	qemuImage(t, path, 1<<20, "")
	s, other := New(nil, formats, nil), New(nil, formats, nil)
	s.noReflink = true
	v := qcow2Volume(t, s, path)
	req := requestFor(v, "set1")
	req.Meta.Disk.Format = "qcow2"
	g, err := prepare(t, s, req, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resize(t.Context(), v, 2<<20); !errors.Is(err, backend.ErrBusy) {
		t.Errorf("Resize = %v while it is copied", err)
	}
	if err := g.Broken(); err != nil {
		t.Errorf("the copy was disturbed: %v", err)
	}
	if _, err := other.Resize(t.Context(), v, 2<<20); !errors.Is(err, backend.ErrBusy) {
		t.Errorf("another daemon's Resize = %v while it is copied", err)
	}
	g.Release()
	if got, err := s.Resize(t.Context(), v, 2<<20); err != nil || got != 2<<20 {
		t.Errorf("Resize = %d, %v", got, err)
	}
	if info, err := os.Stat(path); err != nil || info.Size() > 1<<20 {
		t.Errorf("the file is %v, %v", info.Size(), err)
	}
}
