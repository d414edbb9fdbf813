package xen

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest"
	"domfs/backend/hypervisor/xen/xenstore/xenstoretest"
	"domfs/backend/run"
	"domfs/backend/run/runtest"

	"golang.org/x/sys/unix"
)

func TestDriver_KeepsTheContract(t *testing.T) {
	backendtest.Hypervisor(t, func(t *testing.T) backend.Hypervisor {
		h := newHost(t)
		h.create(3, "web01")
		h.attach(3, 0, "xvda", "phy", "/dev/vg/web01")
		h.attach(3, 0, "hdc", "qdisk", "", "device-type", "cdrom", "mode", "r")
		h.create(4, "a/b")
		h.create(5, "web01")
		h.create(6, "")
		h.create(7, "..")
		h.create(8, strings.Repeat("x", 300))
		return h.open(nil)
	})
}

// oddList is what real lists have but seldom: composed as xl_info.c prints it.
const oddList = "Name                                        ID   Mem VCPUs\tState\tTime(s)\n" +
	"Domain-0                                     0  1024     2     r-----     123.4\n" +
	"web01                                        7   512     1     -b----       4.2\n" +
	"a name of more than forty characters, and with blanks     8   256     1     --p---       0.0\n" +
	"mail 12  34 56     r-----  1.0               9  4096    16     ---s--  100000.5\n" +
	"crash                                       10    64     1     ---sc-       1.1\n" +
	"dog                                         11    64     1     ---sw-       1.1\n" +
	"rebooting                                   12    64     1     ---sr-       1.1\n" +
	"dying                                       13     0     1     --ps-d       9.9\n" +
	"(null)                                      14     0     1     -----d       9.9\n" +
	"first line of a name\n" +
	"and its second                              15    64     1     ------       3.0\n"

func TestXLList_IsReadAsItIsPrinted(t *testing.T) {
	d := New(Options{Runner: runtest.Runner(t, "testdata/xl-list.json")})
	for _, c := range []struct {
		read func() (map[int]backend.DomainState, error)
		want map[int]backend.DomainState
	}{
		{func() (map[int]backend.DomainState, error) { return d.states(t.Context()) },
			map[int]backend.DomainState{0: "running", realGuest: "running"}},
		{func() (map[int]backend.DomainState, error) { return parseList(oddList) },
			map[int]backend.DomainState{0: "running", 7: "running", 8: "paused", 9: "shutdown", 10: "crashed", 11: "crashed", 12: "shutdown", 13: "dying", 14: "dying", 15: "running"}},
	} {
		if got, err := c.read(); err != nil || fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("got %v, %v\nwant %v", got, err, c.want)
		}
	}
	for _, out := range []string{"", "Name ID\n", "Usage: xl list\n", "Name                                        ID   Mem VCPUs\tState\tTime(s)\n"} {
		if got, err := parseList(out); !errors.Is(err, backend.ErrCorrupt) {
			t.Errorf("%q is read as %v, %v", out, got, err)
		}
	}
}

func TestXLList_ThatCannotBeHadIsAnError(t *testing.T) {
	argv := []string{"xl", "list"}
	for _, c := range []struct {
		call run.Call
		want error
	}{
		{run.Call{Argv: argv, Exit: 1, Stderr: run.Text("libxl: error: cannot open libxc handle: Permission denied\n")}, backend.ErrIO},
		{run.Call{Argv: argv, Exit: -1, Failure: "missing"}, backend.ErrNotExist},
		{run.Call{Argv: argv, Exit: -1, Failure: "timeout"}, backend.ErrTimeout},
	} {
		d := New(Options{Runner: (&run.Transcript{Calls: []run.Call{c.call}}).Replay()})
		if got, err := d.states(t.Context()); !errors.Is(err, c.want) || got != nil {
			t.Errorf("got %v, %v, want %v", got, err, c.want)
		}
	}
}

func FuzzXLList(f *testing.F) {
	f.Add(oddList)
	f.Fuzz(func(t *testing.T, out string) {
		states, err := parseList(out)
		if err != nil {
			return
		}
		for id, s := range states {
			if id < 0 || id > maxDomid || s == "" || s == backend.StateOff {
				t.Fatalf("domain %d is %q", id, s)
			}
		}
	})
}

func TestDomains_AreThoseOfXenstoreWithTheStatesOfXL(t *testing.T) {
	h := newHost(t)
	d := h.open(nil)
	if list := domains(t, d); len(list) != 0 || h.lists != 0 {
		t.Errorf("without guests: %v, and xl was asked %d times", list, h.lists)
	}
	for i, flags := range []string{"-b----", "r-----", "--p---", "---s--", "---sc-", "--ps-d"} {
		h.create(i+1, fmt.Sprint("d", i))
		h.flag(i+1, flags)
	}
	h.Set("/local/domain/junk/name", "junk", "/local/domain/007/name", "bond", "/local/domain/99999/name", "large", "/local/domain/8", "") // none of them is one
	h.flag(9, "-----d")                                                                                                                    // has no record any more
	h.create(10, "ended")
	h.flag(10, "")
	h.lists = 0
	var got []string
	for _, dom := range domains(t, d) {
		got = append(got, fmt.Sprintf("%d %s %s %s %v", dom.ID, dom.Name, dom.State, dom.UUID, dom.Err))
	}
	var want []string
	for i, state := range []string{"running", "running", "paused", "shutdown", "crashed", "dying"} {
		want = append(want, fmt.Sprintf("%d d%d %s %s <nil>", i+1, i, state, uuidOf(i+1)))
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") || h.lists != 1 {
		t.Errorf("xl was asked %d times; got\n%s\nwant\n%s", h.lists, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestDomains_AreAskedForAgainWhereOneWasMissed(t *testing.T) {
	h := newHost(t)
	h.create(1, "one")
	d := h.open(nil)
	d.xl = func(ctx context.Context) ([]byte, error) {
		if h.lists == 0 {
			h.create(2, "two") // between xenstored and xl
		}
		return h.xl(ctx)
	}
	if list := domains(t, d); len(list) != 2 || h.lists != 2 {
		t.Errorf("%d domains, xl was asked %d times", len(list), h.lists)
	}
	h.names[5] = "five"
	h.flag(5, "--p---") // is being made, and has nothing in xenstored for a long while
	h.lists = 0
	if list := domains(t, d); len(list) != 2 || h.lists != 3 {
		t.Errorf("%d domains, xl was asked %d times", len(list), h.lists)
	}
}

func TestDomains_AreNotKnownWhereEitherCannotBeAsked(t *testing.T) {
	h := newHost(t)
	h.create(1, "one")
	d := h.open(nil)
	h.xlErr = backend.ErrTimeout
	if list, err := d.Domains(t.Context()); !errors.Is(err, backend.ErrTimeout) || list != nil {
		t.Errorf("without xl: %v, %v", list, err)
	}
	h.xlErr = nil
	h.Stop()
	if list, err := d.Domains(t.Context()); err == nil || list != nil {
		t.Errorf("without xenstored: %v, %v", list, err)
	}
	h.Start()
	one(t, d)
}

func TestDomains_AreNotWaitedForEachTimeThatXLHangs(t *testing.T) {
	h := newHost(t)
	h.create(7, "web01")
	d := h.open(nil)
	var waited time.Duration
	hangs := true
	d.xl = func(ctx context.Context) ([]byte, error) {
		end, _ := ctx.Deadline()
		waited += time.Until(end).Round(time.Second)
		if hangs {
			return nil, fmt.Errorf("xl list: %w", backend.ErrTimeout)
		}
		return h.xl(ctx)
	}
	const times = xlPatience + 1
	for range times {
		if _, err := d.Domains(t.Context()); !errors.Is(err, backend.ErrTimeout) {
			t.Fatal(err)
		}
	}
	if want := 2*xlTimeout + (times-2)*xlImpatient; waited != want {
		t.Errorf("%d times took %s, want %s", times, waited, want)
	}
	hangs = false
	domains(t, d)
	waited = 0
	if domains(t, d); waited != xlTimeout {
		t.Errorf("it has %s once it has answered", waited)
	}
}

func TestDomain_UUIDIsThatOfItsVMOrNone(t *testing.T) {
	h := newHost(t)
	h.create(1, "one")
	d := h.open(nil)
	for vm, want := range map[string]string{
		"/vm/" + strings.ToUpper("abcdef00-1111-2222-3333-444444444444"): "abcdef00-1111-2222-3333-444444444444",
		"/vm/other": uuidOf(2), "/vm/nothing": "", "/local/domain/1/data": "", "/vm/a/b": "", "/vm/": "", "": "", "/vm/a b\n": "",
	} {
		h.Set("/vm/other/uuid", uuidOf(2), "/vm/a/b/uuid", uuidOf(3), "/local/domain/1/data/uuid", uuidOf(4), "/local/domain/1/vm", vm)
		if dom := one(t, d); dom.UUID != want || dom.Err != nil {
			t.Errorf("vm %q: UUID %q, %v; want %q", vm, dom.UUID, dom.Err, want)
		}
	}
	h.Set("/local/domain/1/vm", "/vm/other")
	h.Permit("/vm/other/uuid", "n0", "b1")
	if dom := one(t, d); dom.UUID != "" {
		t.Errorf("one that the guest may write is believed: %q", dom.UUID)
	}
}

func TestDisks_AreWhatTheToolstackWroteDown(t *testing.T) {
	h := newHost(t)
	h.create(2, "drv")
	h.flag(2, "r-----")
	h.create(7, "web01")
	h.attach(7, 0, "xvda", "phy", "/dev/vg/web01-root")
	h.attach(7, 0, "xvda1", "phy", "vg/web01-boot", "mode", "r")
	h.attach(7, 0, "xvdb", "qdisk", "qcow2:/images/a:b.qcow2")
	h.attach(7, 0, "xvdc", "qdisk", "aio:nbd:host:10809:exportname=x")
	h.attach(7, 0, "sda1", "phy", "/dev/xen/blktap-2/tapdev0", "tapdisk-params", "vhd:/images/w.vhd")
	h.attach(7, 0, "hda", "phy", "target-of-the-script", "script", "/etc/xen/scripts/block-drbd")
	h.attach(7, 0, "hdc", "qdisk", "aio:/images/x.iso", "device-type", "cdrom", "mode", "r")
	d := h.open(nil)
	get := func() backend.Domain { return domains(t, d)[1] }
	want := `hda phy raw target-of-the-script rw script=block-drbd
sda1 tap vhd /images/w.vhd rw
hdc qdisk raw /images/x.iso ro cdrom
xvda phy raw /dev/vg/web01-root rw
xvda1 phy raw /dev/vg/web01-boot ro
xvdb qdisk qcow2 /images/a:b.qcow2 rw
xvdc qdisk raw nbd:host:10809:exportname=x rw`
	dom := get()
	if got := describe(dom.Disks); got != want || dom.Err != nil || len(dom.Warnings) != 0 {
		t.Errorf("error %v, warnings %q, disks\n%s\nwant\n%s", dom.Err, dom.Warnings, got, want)
	}
	for _, vdev := range []string{"xvda", "xvda1", "xvdb", "xvdc", "sda1", "hda"} {
		h.detach(7, 0, vdev, "vbd")
		h.detach(7, 0, vdev, "qdisk")
	}
	// The medium is taken out: libxl writes an empty params.
	h.Set(libxlPath(7, "hdc")+"/params", "", backendPath(0, "qdisk", 7, "hdc")+"/params", "")
	if got := describe(get().Disks); got != "hdc qdisk   ro cdrom" {
		t.Errorf("an empty drive: %s", got)
	}
	h.Set(libxlPath(7, "hdc")+"/params", "aio:")
	if got := describe(get().Disks); got != "hdc qdisk   ro cdrom" {
		t.Errorf("an empty drive from the start: %s", got)
	}
	h.detach(7, 0, "hdc", "qdisk")
	h.attach(7, 2, "xvda", "phy", "/dev/there")
	if got := describe(get().Disks); got != "xvda phy raw /dev/there rw by=drv" {
		t.Errorf("of a driver domain: %s", got)
	}
	h.Remove(backendPath(2, "vbd", 7, "xvda"))
	if got := describe(get().Disks); got != "xvda phy raw /dev/there rw by=drv" {
		t.Errorf("of a driver domain that ended: %s", got)
	}
	h.detach(7, 2, "xvda", "vbd")
	h.Set("/libxl/7/device/virtio_disk/51712/backend", "/local/domain/0/backend/virtio_disk/7/51712", "/libxl/7/device/virtio_disk/51712/dev", "xvda",
		"/libxl/7/device/virtio_disk/51712/type", "standalone", "/libxl/7/device/virtio_disk/51712/params", "/dev/vg/v", "/libxl/7/device/virtio_disk/51712/mode", "w",
		"/local/domain/0/backend/virtio_disk/7/51712/online", "1")
	if got := describe(get().Disks); got != "xvda standalone raw /dev/vg/v rw" {
		t.Errorf("of virtio's kind: %s", got)
	}
}

func TestDisk_VanishesWhenItsBackendHasClosedIt(t *testing.T) {
	h := newHost(t)
	h.create(7, "web01")
	h.attach(7, 0, "xvda", "phy", "/dev/vg/a")
	d := h.open(nil)
	back := backendPath(0, "vbd", 7, "xvda")
	for _, step := range []struct {
		online, state string
		there         bool
	}{
		{"1", "2", true}, {"1", "4", true},
		{"1", "5", true}, {"1", "6", true}, // the guest reloads its driver
		{"0", "4", true}, {"0", "5", true}, // asked for, and the guest may refuse
		{"0", "6", false},
	} {
		h.Set(back+"/online", step.online, back+"/state", step.state)
		if n := len(one(t, d).Disks); (n == 1) != step.there {
			t.Errorf("online %s, state %s: %d disks", step.online, step.state, n)
		}
	}
	h.Set(back+"/online", "1", back+"/state", "4")
	h.Remove(back)
	if dom := one(t, d); len(dom.Disks) != 0 || dom.Err != nil {
		t.Errorf("without a backend: %+v", dom)
	}
}

func TestDisk_IsTheDeviceThatBlkbackHasOpen(t *testing.T) {
	h := newHost(t)
	h.create(7, "web01")
	h.attach(7, 0, "xvda", "phy", "/dev/vg/a")
	h.attach(7, 0, "xvdb", "phy", "iqn:lun", "script", "/etc/xen/scripts/block-iscsi")
	devices := map[string]uint64{"/dev/vg/a": unix.Mkdev(0xfd, 3), "/dev/dm-3": unix.Mkdev(0xfd, 3), "/dev/sdz": unix.Mkdev(65, 0x90)}
	d := h.open(devices)
	back := backendPath(0, "vbd", 7, "xvda")
	check := func(what, want string, warnings int) {
		t.Helper()
		dom := one(t, d)
		if got := describe(dom.Disks[:1]); got != "xvda phy raw "+want+" rw" || len(dom.Warnings) != warnings || dom.Err != nil {
			t.Errorf("%s: %s, warnings %q, error %v; want %s", what, got, dom.Warnings, dom.Err, want)
		}
	}
	check("before it is connected", "/dev/vg/a", 0)
	h.connect(back, "fd:3", "/dev/dm-3", "2048")
	check("connected", "/dev/vg/a", 0)
	devices["/dev/vg/a"] = unix.Mkdev(0xfd, 9) // lvrename, and a new one of the old name
	check("renamed", "/dev/dm-3", 1)
	delete(devices, "/dev/dm-3")
	check("with a path that leads nowhere", "/dev/block/253:3", 1)
	for _, junk := range []string{"", "fd", "fd:", "x:y", "0:0", "fd:3:4", "-1:2", "1ffffffff:0"} {
		h.Set(back+"/physical-device", junk)
		check(fmt.Sprintf("physical-device %q", junk), "/dev/vg/a", 0)
	}
	if got := describe(one(t, d).Disks[1:]); got != "xvdb phy raw iqn:lun rw script=block-iscsi" {
		t.Errorf("before the script has run: %s", got)
	}
	h.connect(backendPath(0, "vbd", 7, "xvdb"), "41:90", "/dev/sdz", "2048")
	if got := describe(one(t, d).Disks[1:]); got != "xvdb phy raw /dev/sdz rw" {
		t.Errorf("what the script made: %s", got)
	}
}

// Whatever a guest writes where it may, and whatever would be where it may not, changes nothing.
func TestDisks_OfAHostileGuestAreTheSame(t *testing.T) {
	h := newHost(t)
	h.create(7, "web01")
	h.create(8, "victim")
	h.attach(7, 0, "xvda", "phy", "/dev/vg/a")
	h.attach(8, 0, "xvda", "phy", "/dev/vg/secret")
	d := h.open(nil)
	want := describe(domains(t, d)[0].Disks)
	front := "/local/domain/7/device/vbd/51712"
	h.Set(front+"/backend", "/local/domain/7/data/backend", front+"/params", "/dev/vg/secret", front+"/state", strings.Repeat("6", 3000), front+"/dev", "../../x",
		"/local/domain/7/data/backend/params", "/dev/vg/secret", "/local/domain/7/device/vbd/51728/backend", backendPath(0, "vbd", 8, "xvda"),
		"/local/domain/7/device/vbd/51728/dev", "xvdb", "/local/domain/7/data/name", "victim", "/local/domain/7/error/device/vbd/51712/error", "\x1b[2J\n",
		"/local/domain/7/control/shutdown", "halt", "/local/domain/7/device/vbd/xx/yy", "")
	var junk []string
	for i := range 2000 {
		junk = append(junk, fmt.Sprintf("/local/domain/7/data/%d", i), "x")
	}
	h.Set(junk...)
	dom := domains(t, d)[0]
	if got := describe(dom.Disks); got != want || dom.Name != "web01" || dom.UUID != uuidOf(7) || dom.Err != nil || len(dom.Warnings) != 0 {
		t.Errorf("domain %+v", dom)
	}
	for _, path := range h.Asked() {
		for _, guests := range []string{"/device", "/data", "/control", "/attr", "/error"} {
			if strings.HasPrefix(path, "/local/domain/7"+guests) {
				t.Errorf("%s was asked for, which the guest may write", path)
			}
		}
	}
}

func TestDisk_ThatIsNotTrustedIsAnErrorAndLeftOut(t *testing.T) {
	lib, back := libxlPath(7, "xvda"), backendPath(0, "vbd", 7, "xvda")
	for name, c := range map[string]struct {
		break_ func(h *host)
		want   error
	}{
		"a toolstack's record that the guest owns":     {func(h *host) { h.Permit(lib, "n7") }, backend.ErrPermission},
		"a toolstack's record that the guest writes":   {func(h *host) { h.Permit(lib, "n0", "b7") }, backend.ErrPermission},
		"a toolstack's record that everybody writes":   {func(h *host) { h.Permit(lib, "b0") }, backend.ErrPermission},
		"a toolstack's record that another one writes": {func(h *host) { h.Permit(lib, "n0", "w9") }, backend.ErrPermission},
		"the frontend for a backend":                   {func(h *host) { h.Set(lib+"/backend", "/local/domain/7/device/vbd/51712") }, backend.ErrCorrupt},
		"another domain's backend":                     {func(h *host) { h.Set(lib+"/backend", backendPath(0, "vbd", 8, "xvda")) }, backend.ErrCorrupt},
		"another disk's backend":                       {func(h *host) { h.Set(lib+"/backend", backendPath(0, "vbd", 7, "xvdb")) }, backend.ErrCorrupt},
		"a backend in the guest":                       {func(h *host) { h.Set(lib+"/backend", backendPath(7, "vbd", 7, "xvda")) }, backend.ErrCorrupt},
		"a backend of another kind":                    {func(h *host) { h.Set(lib+"/backend", backendPath(0, "vif", 7, "xvda")) }, backend.ErrCorrupt},
		"a path that leads up":                         {func(h *host) { h.Set(lib+"/backend", "/local/domain/0/backend/vbd/7/../51712") }, backend.ErrCorrupt},
		"a number that is written oddly":               {func(h *host) { h.Set(lib+"/backend", "/local/domain/00/backend/vbd/7/51712") }, backend.ErrCorrupt},
		"a name that is a path":                        {func(h *host) { h.Set(lib+"/dev", "../xvda") }, backend.ErrInvalid},
		"a name with a newline":                        {func(h *host) { h.Set(lib+"/dev", "xvda\n") }, backend.ErrInvalid},
		"an unknown type":                              {func(h *host) { h.Set(lib+"/type", "magic") }, backend.ErrUnsupported},
		"no target":                                    {func(h *host) { h.Set(lib+"/params", "") }, backend.ErrInvalid},
		"a path that is relative to an unknown folder": {func(h *host) { h.Set(lib+"/type", "qdisk", lib+"/params", "aio:disk.img") }, backend.ErrUnsupported},
		"a target without a format":                    {func(h *host) { h.Set(lib+"/type", "qdisk", lib+"/params", "/disk.img") }, backend.ErrUnsupported},
		"a name that another disk has":                 {func(h *host) { h.attach(7, 0, "xvda1", "phy", "/dev/vg/b", "dev", "xvda") }, backend.ErrExist},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.create(7, "web01")
			h.attach(7, 0, "xvda", "phy", "/dev/vg/a")
			h.attach(7, 0, "xvdb", "phy", "/dev/vg/b")
			c.break_(h)
			d := h.open(nil)
			dom := one(t, d)
			if !errors.Is(dom.Err, c.want) || strings.Contains(dom.Err.Error(), "\n") {
				t.Errorf("error %v, want %v", dom.Err, c.want)
			}
			rest := "xvdb phy raw /dev/vg/b rw"
			if errors.Is(c.want, backend.ErrExist) {
				rest = "xvda phy raw /dev/vg/a rw\n" + rest
			}
			if got := describe(dom.Disks); got != rest {
				t.Errorf("disks\n%s", got)
			}
		})
	}
	t.Run("a backend's directory that the guest writes", func(t *testing.T) {
		h := newHost(t)
		h.create(7, "web01")
		h.attach(7, 0, "xvda", "phy", "/dev/vg/a")
		h.connect(back, "fd:3", "/dev/vg/secret", "2048")
		h.Set(back+"/online", "0", back+"/state", "6")
		h.Permit(back, "n0", "b7")
		d := h.open(map[string]uint64{"/dev/vg/secret": unix.Mkdev(0xfd, 3)})
		dom := one(t, d)
		if got := describe(dom.Disks); got != "xvda phy raw /dev/vg/a rw" || !errors.Is(dom.Err, backend.ErrPermission) {
			t.Errorf("%s, error %v", got, dom.Err)
		}
	})
}

func TestDisk_OfADriverDomainIsNeverTakenForThisHosts(t *testing.T) {
	for _, name := range []string{"0", "Domain-0"} {
		h := newHost(t)
		h.create(3, name)
		h.create(7, "web01")
		h.attach(7, 3, "xvda", "phy", "/dev/vg/a")
		list := domains(t, h.open(nil))
		if got := describe(list[len(list)-1].Disks); got != "xvda phy raw /dev/vg/a rw by=3" {
			t.Errorf("served by a domain that is called %s: %s", name, got)
		}
	}
}

func TestNames_AreThoseThatTheTreeCanShow(t *testing.T) {
	h := newHost(t)
	for i, name := range []string{"web01", "web01", "", "a/b\n", "..", strings.Repeat("é", 200), "domain-3"} {
		h.create(i+1, name)
	}
	h.create(20, "liar")
	h.Permit("/local/domain/20/name", "n20")
	d := h.open(nil)
	var got []string
	for _, dom := range domains(t, d) {
		got = append(got, fmt.Sprintf("%.20s %v", dom.Name, dom.Err != nil))
		if len(dom.Name) > 255 || dom.Err != nil && strings.Contains(dom.Err.Error(), "\n") {
			t.Errorf("%+v", dom)
		}
	}
	want := []string{"web01 false", "web01@2 true", "domain-3.2 false", "a%2Fb%0A true", "%2E%2E true", strings.Repeat("é", 20) + " true", "domain-3 false", "domain-20 true"}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

// Versions whose transactions fail for any write at all are no reason to see nothing.
func TestDomains_AreReadWhileAGuestWritesWithoutPause(t *testing.T) {
	h := newHost(t)
	for i := range 20 {
		h.create(i+1, fmt.Sprint("d", i))
		h.attach(i+1, 0, "xvda", "phy", "/dev/vg/a")
	}
	d := h.open(nil)
	writes := 0
	h.Hook(func(*xenstoretest.Conn, xenstoretest.Message) bool { // it has its turn after each request of ours
		writes++
		h.Set("/local/domain/1/data/x", fmt.Sprint(writes))
		return false
	})
	list := domains(t, d)
	if len(list) != 20 {
		t.Errorf("%d domains", len(list))
	}
	for _, dom := range list {
		if len(dom.Disks) != 1 || dom.Err != nil {
			t.Errorf("%+v", dom)
		}
	}
	// Not each domain is to find out anew that the store does not hold still.
	if n := h.Requests(xenstoretest.TransactionStart); n > 5*(concurrent+1) {
		t.Errorf("%d transactions", n)
	}
}

func TestAvailable_OnlyInDomain0(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  bool
	}{
		"no Xen":                        {nil, false},
		"a guest":                       {map[string]string{"dev/xen/xenbus": "", "proc/xen/xenbus": "", "proc/xen/capabilities": "", "sys/hypervisor/properties/features": "00000705\n"}, false},
		"domain 0":                      {map[string]string{"sys/hypervisor/properties/features": "00002fff\n"}, true},
		"domain 0, by xenfs":            {map[string]string{"proc/xen/capabilities": "control_d\n"}, true},
		"a file in place of the socket": {map[string]string{"run/xenstored/socket": ""}, false},
	} {
		root := t.TempDir()
		for file, text := range c.files {
			path := filepath.Join(root, file)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := available(root); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	h := newHost(t)
	root := t.TempDir()
	if err := os.MkdirAll(root+"/run/xenstored", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(h.Path(), root+"/run/xenstored/socket"); err != nil {
		t.Fatal(err)
	}
	if !available(root) {
		t.Error("a xenstored is there, and not found")
	}
}
