package vfs

import (
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"domfs/backend"
	"domfs/backend/fake"

	"golang.org/x/sys/unix"
)

const dbDisks = "xenstore/db01/disks"

func TestNewDisk_IsMadeByMkdirAndItsSize(t *testing.T) {
	r := newRig(t)
	r.Store.AddPool(backend.Pool{Name: "vg0", Driver: "fake", SizeBytes: 1 << 30, FreeBytes: 1 << 30})
	dir := r.path(dbDisks, "xvdb")
	run := func(script string) {
		t.Helper()
		if out, exit := sh(t, script, dir); exit != 0 {
			t.Fatalf("%s: %s; last_error: %s", script, out, r.read("xenstore/db01/last_error"))
		}
	}
	run(`mkdir "$1"`)
	if got := r.list(dbDisks); !slices.Equal(got, []string{"vda", "xvdb"}) {
		t.Errorf("disks: %q", got)
	}
	if got, want := strings.Join(r.list(dbDisks, "xvdb"), " "), "content driver format label mode raw size source uuid"; got != want {
		t.Errorf("it holds %s, want %s", got, want)
	}
	for name, want := range map[string]string{"size": "", "source": "", "driver": "", "content": "", "label": "", "uuid": "", "format": "raw\n", "mode": "rw\n"} {
		if got := r.read(dbDisks, "xvdb", name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if st := r.stat(dbDisks, "xvdb", "raw"); st.Size != 0 {
		t.Errorf("raw has %d bytes", st.Size)
	}
	_, err := os.ReadFile(r.path(dbDisks, "xvdb", "raw"))
	wantErrno(t, "read raw", err, syscall.ENODEV)
	_, err = os.Lstat(r.path(dbDisks, "xvdb", "p1"))
	wantErrno(t, "p1", err, syscall.ENOENT)
	for name, want := range map[string]uint32{"source": 0o644, "size": 0o644, "mode": 0o444} {
		if st := r.stat(dbDisks, "xvdb", name); st.Mode&0o7777 != want {
			t.Errorf("%s has mode %o, want %o", name, st.Mode&0o7777, want)
		}
	}
	if errs := r.read("xenstore/db01/last_error"); errs != "" {
		t.Errorf("last_error: %s", errs)
	}
	run(`echo vg0 > "$1/source"`)
	if got := r.read(dbDisks, "xvdb", "source"); got != "vg0\n" {
		t.Errorf("source is %q", got)
	}
	run(`echo 2M > "$1/size"`)
	for name, want := range map[string]string{"size": "2097152\n", "source": "/images/db01-xvdb\n", "driver": "fake\n", "content": "", "mode": "rw\n"} {
		if got := r.read(dbDisks, "xvdb", name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if b, err := os.ReadFile(r.path(dbDisks, "xvdb", "raw")); err != nil || len(b) != 2*MiB || strings.Contains(string(b), fake.Stale) {
		t.Errorf("raw has %d bytes, %v, or what was there before", len(b), err)
	}
	if st := r.stat(dbDisks, "xvdb", "source"); st.Mode&0o7777 != 0o444 {
		t.Errorf("source has mode %o", st.Mode&0o7777)
	}
	run(`echo +1M > "$1/size"`) // it is a disk like any other
	if got := r.read(dbDisks, "xvdb", "size"); got != "3145728\n" {
		t.Errorf("size is %q", got)
	}
	run(`rmdir "$1"`)
	if got := r.list(dbDisks); !slices.Equal(got, []string{"vda"}) || !r.Store.HasVolume("/images/db01-xvdb") {
		t.Errorf("disks: %q; the volume is there: %t", got, r.Store.HasVolume("/images/db01-xvdb"))
	}
	if _, err := os.Lstat(dir); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("stat after rmdir: %v", err)
	}
}

func TestNewDisk_IsForgottenByRmdir(t *testing.T) {
	r := newRig(t)
	for range 2 {
		r.mkdir(dbDisks, "xvdb")
		r.rmdir(dbDisks, "xvdb")
		if got := r.list(dbDisks); !slices.Equal(got, []string{"vda"}) {
			t.Errorf("disks: %q", got)
		}
	}
	if errs := r.read("xenstore/db01/last_error"); errs != "" {
		t.Errorf("last_error: %s", errs)
	}
}

func TestNewDisk_SaysWhyItCannotBe(t *testing.T) {
	r := newRig(t)
	mounted := fake.NewGuest("db-1") // what the header on vda names
	mounted.SetUse(backend.InUse)
	r.guests.Add(mounted)
	value := func(path, text string) error {
		f, err := os.OpenFile(r.path(dbDisks, path), os.O_WRONLY|os.O_TRUNC, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteString(text + "\n")
		return err
	}
	mkdir := func(path string) error { return unix.Mkdir(r.path("xenstore", path), 0o755) }
	for _, c := range []struct {
		what  string
		f     func() error
		want  syscall.Errno
		words string // in last_error
	}{
		{"mkdir of a disk that is there", func() error { return mkdir("db01/disks/vda") }, syscall.EEXIST, ""},
		{"mkdir of no disk", func() error { return mkdir("db01/disks/data") }, syscall.EINVAL, `"data" cannot be a disk`},
		{"mkdir in a domain that is off", func() error { return mkdir("web01/disks/xvdc") }, syscall.EOPNOTSUPP, ""},
		{"rmdir in a domain that is off", func() error { return syscall.Rmdir(r.path("xenstore/web01/disks/xvda")) }, syscall.EOPNOTSUPP, ""},
		{"source of a disk", func() error { return value("vda/source", "fakestore") }, syscall.EROFS, "only the source of a new disk"},
		{"mkdir", func() error { return mkdir("db01/disks/xvdb") }, 0, ""},
		{"mkdir again", func() error { return mkdir("db01/disks/xvdb") }, syscall.EEXIST, ""},
		{"no store", func() error { return value("xvdb/source", "vg9") }, syscall.ENODEV, `"vg9"`},
		{"no size", func() error { return value("xvdb/size", "10X") }, syscall.EINVAL, `"10X" is not a size`},
		{"no room", func() error { r.Store.SetCapacity(20 * MiB); return value("xvdb/size", "100M") }, syscall.ENOSPC, "104857600"},
		{"not attached", func() error {
			defer r.Hypervisor.Fail("Attach", backend.ErrTimeout)()
			return value("xvdb/size", "1M")
		}, syscall.ETIMEDOUT, "cannot be attached to db01"},
		{"rmdir of a disk that is mounted", func() error { return syscall.Rmdir(r.path(dbDisks, "vda")) }, syscall.EBUSY, "memfs on vda is mounted"},
	} {
		wantErrno(t, c.what, c.f(), c.want)
		if errs := r.read("xenstore/db01/last_error"); !strings.Contains(errs, c.words) {
			t.Errorf("%s: last_error has no %q:\n%s", c.what, c.words, errs)
		}
	}
	if left := r.Store.Unfinished(); len(left) != 0 {
		t.Errorf("left over: %q", left)
	}
	if errs := r.read("xenstore/web01/last_error"); strings.Count(errs, "web01 is off") != 2 {
		t.Errorf("last_error of web01:\n%s", errs)
	}
}

func TestNewDisk_IsRefusedWhereTheHypervisorTakesNone(t *testing.T) {
	r := newRigWith(t, rigOptions{caps: fake.All &^ fake.Attach})
	wantErrno(t, "mkdir", unix.Mkdir(r.path(dbDisks, "xvdb"), 0o755), syscall.EOPNOTSUPP)
	wantErrno(t, "rmdir", syscall.Rmdir(r.path(dbDisks, "vda")), syscall.EOPNOTSUPP)
}

func TestNewDisk_IsAnsweredOnceTheGuestHasIt(t *testing.T) {
	r := newRig(t)
	r.mkdir(dbDisks, "xvdb")
	hang := make(chan struct{})
	r.Store.Plant(fake.Fault{Op: "Clear", Hang: hang})
	write := async(func() error { return os.WriteFile(r.path(dbDisks, "xvdb", "size"), []byte("1M\n"), 0) })
	eventually(t, "it is cleared", func() bool { return r.Store.Calls("Clear") == 1 })
	r.list(dbDisks) // nothing else waits
	stillWaits(t, "the write", write)
	close(hang)
	if err := receive(t, "the write", write); err != nil {
		t.Error(err)
	}
	if n := r.Store.Calls("Create"); n != 1 || r.read(dbDisks, "xvdb", "size") != "1048576\n" {
		t.Errorf("made %d times", n)
	}
}
