package vfs

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"domfs/backend"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

func addDisk(r *rig, d backend.Disk) {
	r.t.Helper()
	r.Hypervisor.Change("web01", func(dom *backend.Domain) { dom.Disks = append(dom.Disks, d) })
	eventually(r.t, d.VDev+" is there", func() bool { _, err := os.Stat(r.path("xenstore/web01/disks", d.VDev)); return err == nil })
}

func TestEmptyDrive_IsNoFailure(t *testing.T) {
	r := newRig(t)
	addDisk(r, backend.Disk{VDev: "xvdc", CDROM: true, Mode: backend.ReadOnly})
	dir := "xenstore/web01/disks/xvdc"
	if got, want := strings.Join(r.list(dir), " "), "content driver format label mode raw size source uuid"; got != want {
		t.Errorf("it holds %s, want %s", got, want)
	}
	for _, name := range []string{"size", "content", "label", "uuid", "source"} {
		if got := r.read(dir, name); got != "" {
			t.Errorf("%s is %q, want nothing", name, got)
		}
	}
	if st := r.stat(dir, "raw"); st.Size != 0 {
		t.Errorf("raw has %d bytes", st.Size)
	}
	_, err := os.ReadFile(r.path(dir, "raw"))
	wantErrno(t, "read raw", err, syscall.ENODEV)
	for _, name := range []string{"files", "p1"} {
		_, err := os.Lstat(r.path(dir, name))
		wantErrno(t, name, err, syscall.ENOENT)
	}
	if errs := r.read("xenstore/web01/last_error"); errs != "" {
		t.Errorf("last_error: %s", errs)
	}
	for _, e := range r.logs.All() {
		if e.Level > zap.DebugLevel && strings.Contains(e.Message+errorOf(e.ContextMap()), "medium") {
			t.Errorf("it is logged: %s %v", e.Message, e.ContextMap())
		}
	}
}

func errorOf(fields map[string]any) string {
	s, _ := fields["error"].(string)
	return s
}

func TestSize_IsReadOnlyWhereTheDiskCannotGrow(t *testing.T) {
	r := newRig(t)
	r.Store.AddVolume("/images/fixed", make([]byte, MiB))
	addDisk(r, backend.Disk{VDev: "xvdc", CDROM: true, Mode: backend.ReadOnly})
	addDisk(r, backend.Disk{VDev: "xvdd", Source: "/images/fixed", Format: "raw", Mode: backend.ReadOnly})
	for vdev, want := range map[string]uint32{"xvda": 0o644, "xvdc": 0o444, "xvdd": 0o444} {
		path := r.path("xenstore/web01/disks", vdev, "size")
		if st := r.stat("xenstore/web01/disks", vdev, "size"); st.Mode&0o7777 != want {
			t.Errorf("size of %s has mode %o, want %o", vdev, st.Mode&0o7777, want)
		}
		fd, err := unix.Open(path, unix.O_WRONLY, 0)
		if err == nil {
			unix.Close(fd)
		}
		errno := syscall.Errno(0)
		if want == 0o444 {
			errno = syscall.EROFS
		}
		wantErrno(t, "open "+vdev+" for writing", err, errno)
		wantErrno(t, "truncate "+vdev, unix.Truncate(path, 0), errno)
	}
	errs := r.read("xenstore/web01/last_error")
	for _, want := range []string{"open EROFS xvdc of web01 is a CD-ROM drive", "open EROFS xvdd of web01 is configured read-only"} {
		if strings.Count(errs, want) != 1 {
			t.Errorf("last_error lacks %q:\n%s", want, errs)
		}
	}
}

func TestUnreadableDisk_IsToldInOneLine(t *testing.T) {
	r := newRig(t)
	addDisk(r, backend.Disk{VDev: "xvdc", Source: "/elsewhere/x", Format: "vhd", Mode: backend.ReadWrite})
	r.list("xenstore/web01/disks/xvdc")
	for _, name := range []string{"size", "content", "label", "uuid", "raw"} {
		if _, err := os.ReadFile(r.path("xenstore/web01/disks/xvdc", name)); !errors.Is(err, syscall.EOPNOTSUPP) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if errs := r.read("xenstore/web01/last_error"); strings.Count(errs, "\n") != 1 || !strings.Contains(errs, "/elsewhere/x") {
		t.Errorf("last_error: %s", errs)
	}
}
