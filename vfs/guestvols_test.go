package vfs

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"domfs/backend/fake"

	"golang.org/x/sys/unix"
)

const lvmUUID = "77777777-2222-3333-4444-555555555555"

// addLVM adds a guest that is off, with /boot on xvda/p1 and the group vg0 on xvda/p2 and xvdb: root, home over
// both, and srv, which lacks a physical volume.
func (r *rig) addLVM(name string) (root, home, boot *fake.Guest) {
	r.t.Helper()
	root, home, boot = fake.NewGuest(name+"-root"), fake.NewGuest(name+"-home"), fake.NewGuest(name+"-boot")
	root.Label, home.Label, boot.Label = "rootfs", "homefs", "bootfs"
	root.File("etc/hostname", []byte(name+"\n"))
	home.File("alice", []byte("of alice\n"))
	boot.File("vmlinuz", []byte("a kernel\n"))
	r.addLVMOf(name, root, home, boot)
	return root, home, boot
}

func (r *rig) addLVMOf(name string, root, home, boot *fake.Guest) {
	const k = 1 << 10
	for _, g := range []*fake.Guest{root, home, boot} {
		r.guests.Add(g)
	}
	a, b := make([]byte, 2*MiB), make([]byte, MiB)
	copy(a, fake.TableHeader(fake.TablePart{Number: 1, OffsetBytes: 256 * k, Length: 256 * k}, fake.TablePart{Number: 2, OffsetBytes: MiB, Length: MiB}))
	copy(a[256*k:], boot.Header())
	copy(a[MiB:], fake.PVHeader("vg0", "pv-a",
		fake.PVExtent{LV: "root", Count: 1, OffsetBytes: 64 * k, Length: 256 * k},
		fake.PVExtent{LV: "home", Count: 2, OffsetBytes: 512 * k, Length: 64 * k},
		fake.PVExtent{LV: "srv", Count: 2, OffsetBytes: 768 * k, Length: 64 * k}))
	copy(a[MiB+64*k:], root.Header())
	copy(a[MiB+512*k:], home.Header())
	copy(b, fake.PVHeader("vg0", "pv-b", fake.PVExtent{LV: "home", Index: 1, Count: 2, OffsetBytes: 512 * k, Length: 128 * k}))
	copy(b[512*k:], pattern(128*k, 3))
	r.AddDomain(name, strings.Replace(lvmUUID, "2222", fmt.Sprintf("%04x", len(name)), 1), map[string][]byte{"xvda": a, "xvdb": b}, "xvda", "xvdb")
	eventually(r.t, name+" is seen", func() bool {
		_, err := os.Stat(r.path("xenstore", name))
		return err == nil
	})
}

func TestLVM_AGuestsVolumesAreVolumesLikeAnyOther(t *testing.T) {
	r := newRig(t)
	r.addLVM("lvm01")
	r.mkdir("snapshots/lvm01/n")
	for _, top := range []string{"xenstore/lvm01", "snapshots/lvm01/n"} {
		if got, want := fmt.Sprint(r.list(top, "lvm")), "[vg0]"; got != want {
			t.Errorf("%s/lvm lists %s, want %s", top, got, want)
		}
		if got, want := fmt.Sprint(r.list(top, "lvm/vg0")), "[home root srv]"; got != want {
			t.Errorf("%s/lvm/vg0 lists %s, want %s", top, got, want)
		}
		home := top + "/lvm/vg0/home"
		for name, want := range map[string]string{"size": "196608\n", "content": "memfs\n", "label": "homefs\n", "files/alice": "of alice\n"} {
			if got := r.read(home, name); got != want {
				t.Errorf("%s/%s is %q, want %q", home, name, got, want)
			}
		}
		raw := r.read(home, "raw")
		if want := string(pattern(128<<10, 3)); len(raw) != 192<<10 || raw[64<<10:] != want {
			t.Errorf("%s/raw is of %d bytes, or its second run is another", home, len(raw))
		}
		// One that cannot be read is there all the same, and says why.
		if got, want := fmt.Sprint(r.list(top, "lvm/vg0/srv")), "[content label raw size uuid]"; got != want {
			t.Errorf("%s/lvm/vg0/srv lists %s, want %s", top, got, want)
		}
		_, err := os.ReadFile(r.path(top, "lvm/vg0/srv/raw"))
		wantErrno(t, top+"/lvm/vg0/srv/raw", err, unix.ENODEV)
		for _, none := range []string{"lvm/vg1", "lvm/vg0/r", "lvm/vg0/home/p1"} {
			_, err := os.Lstat(r.path(top, none))
			wantErrno(t, none, err, unix.ENOENT)
		}
	}
	// A guest without any has an empty directory.
	if got := r.list("xenstore/web01/lvm"); len(got) != 0 {
		t.Errorf("web01 has %v", got)
	}
}

func TestLVM_ListingASnapshotReadsNoDisk(t *testing.T) {
	r := newRig(t)
	r.addLVM("lvm01")
	r.mkdir("snapshots/lvm01/n")
	opens := r.Store.Calls("Open")
	for _, top := range []string{"xenstore/lvm01", "snapshots/lvm01/n"} {
		r.list(top)
		r.stat(top, "lvm")
	}
	if n := r.Store.Calls("Open") - opens; n != 0 {
		t.Errorf("%d disks were opened", n)
	}
}

func TestLVM_OfALiveDomainGoesWhenItStarts(t *testing.T) {
	r := newRig(t)
	r.addLVM("lvm01")
	f, err := os.Open(r.path("xenstore/lvm01/lvm/vg0/root/files/etc/hostname"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r.Hypervisor.Start("lvm01")
	eventually(t, "lvm is gone", func() bool {
		_, err := os.Lstat(r.path("xenstore/lvm01/lvm"))
		return os.IsNotExist(err)
	})
	if got := r.list("xenstore/lvm01"); strings.Contains(fmt.Sprint(got), "lvm") {
		t.Errorf("it is listed still: %v", got)
	}
	_, err = f.ReadAt(make([]byte, 4), 0)
	wantErrno(t, "read of a file that was open", err, unix.ESTALE)
}

func TestLVM_AnOpenFileKeepsTheSnapshot(t *testing.T) {
	r := newRig(t)
	r.addLVM("lvm01")
	r.mkdir("snapshots/lvm01/n")
	f, err := os.Open(r.path("snapshots/lvm01/n/lvm/vg0/home/files/alice"))
	if err != nil {
		t.Fatal(err)
	}
	wantErrno(t, "rmdir", unix.Rmdir(r.path("snapshots/lvm01/n")), unix.EBUSY)
	f.Close()
	r.rmdir("snapshots/lvm01/n")
}
