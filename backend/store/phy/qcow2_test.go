package phy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest"
	"domfs/backend/backendtest/loop"
	"domfs/backend/backendtest/testneed"
	"domfs/backend/format/qcow2"
)

var formats = []backend.Format{qcow2.New()}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	testneed.Tools(t, name)
	return loop.Command(t, name, args...)
}

func TestStore_KeepsContractForQcow2(t *testing.T) {
	const sizeBytes = 3<<20 + 512
	backendtest.Store(t, func(t *testing.T) backendtest.StoreFixture {
		device, _ := loop.Device(t, 16<<20)
		run(t, "qemu-img", "create", "-q", "-f", "qcow2", device, fmt.Sprint(sizeBytes))
		return backendtest.StoreFixture{
			New:       func(t *testing.T) backend.Store { return New(formats, nil) },
			Disk:      backend.Disk{VDev: "xvda", Format: "qcow2", Source: device},
			SizeBytes: sizeBytes,
			Missing:   backend.Disk{VDev: "xvdb", Format: "qcow2", Source: "/dev/mapper/no-such-device"},
			Foreign:   []backend.Disk{{VDev: "xvda", Format: "qcow2", Source: "nbd://127.0.0.1/disk"}},
			Write: func(t *testing.T, p []byte, off int64) {
				file := filepath.Join(t.TempDir(), "bytes")
				if err := os.WriteFile(file, p, 0o600); err != nil {
					t.Fatal(err)
				}
				run(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -q -s %s %d %d", file, off, len(p)), "-c", "flush", device)
			},
		}
	})
}

func TestVolumes_SayWhyAnImageOnADeviceCannotBeRead(t *testing.T) {
	device, file := loop.Device(t, 16<<20)
	s := New(formats, nil)
	volume := func(format string) backend.Volume {
		t.Helper()
		volumes, err := s.Volumes(t.Context(), []backend.Disk{{VDev: "xvda", Format: format, Source: device}})
		if err != nil {
			t.Fatal(err)
		}
		return volumes[0]
	}
	check := func(what string, v backend.Volume, want error, says string) {
		t.Helper()
		if !errors.Is(v.Err, want) || !strings.Contains(v.Err.Error(), says) || !strings.Contains(v.Err.Error(), device) {
			t.Errorf("%s: Err = %v, want %v with %q", what, v.Err, want, says)
		}
		if d, err := s.Open(t.Context(), v); !errors.Is(err, want) {
			t.Errorf("%s: Open = %v, %v, want %v", what, d, err, want)
		}
	}
	check("another format", volume("vhd"), backend.ErrUnsupported, "raw and qcow2")
	check("no image", volume("qcow2"), backend.ErrCorrupt, "configuration")
	// What is on the device now is seen at once.
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", "/etc/hostname", device, "1M")
	check("a backing file", volume("qcow2"), backend.ErrUnsupported, "/etc/hostname")
	// What it says may not read the file that whoever made the image has chosen.
	if text := volume("qcow2").Err.Error(); strings.Contains(text, "convert") || !strings.Contains(text, "qemu-img rebase -u -f qcow2 -b \"\"") {
		t.Errorf("a backing file: %s", text)
	}
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", device, "1M")
	v := volume("qcow2")
	if v.Err != nil || v.SizeBytes != 1<<20 || v.Format != "qcow2" {
		t.Errorf("Volumes = %+v", v)
	}
	d, err := s.Open(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if got, err := io.ReadAll(io.NewSectionReader(d, 0, d.Size())); err != nil || !bytes.Equal(got, make([]byte, 1<<20)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	// A raw disk that begins with such an image stays raw.
	if v := volume("raw"); v.Err != nil || v.SizeBytes != 16<<20 {
		t.Errorf("Volumes = %+v of %s", v, file)
	}
}
