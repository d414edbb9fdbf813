package xen

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"domfs/backend"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

const volume = "/dev/vg0/web01"

// serving is a host with a domain 7, whose disk xvda is a block device that blkback serves, of 100 sectors.
func serving(t *testing.T) (*host, *Driver) {
	t.Helper()
	h := newHost(t)
	h.create(7, "web01")
	h.attach(7, 0, "xvda", "phy", volume)
	h.connect(backendPath(0, "vbd", 7, "xvda"), "fd:1", volume, "100")
	return h, h.open(map[string]uint64{volume: 0xfd01, "/dev/vg0/more": 0xfd02})
}

var web01 = backend.Domain{Name: "web01", ID: 7, State: backend.StateRunning}

func TestCanNotify_OnlyWhereBlkbackServesABlockDevice(t *testing.T) {
	h, d := serving(t)
	h.attach(7, 0, "xvdb", "qdisk", "aio:/srv/b.img")
	h.attach(7, 0, "xvdc", "phy", "/srv/c.img")
	h.attach(7, 0, "hda", "phy", "", "tapdisk-params", "vhd:/srv/d.vhd")
	h.attach(7, 3, "hdc", "phy", volume)
	for vdev, words := range map[string]string{"xvdb": "QEMU (qdisk)", "xvdc": "loop device", "hda": "tapdisk", "hdc": "domain 3"} {
		if err := d.CanNotify(t.Context(), web01, vdev); !errors.Is(err, backend.ErrUnsupported) || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v, want %q", vdev, err, words)
		}
		if err := d.NotifySize(t.Context(), web01, vdev, 1); !errors.Is(err, backend.ErrUnsupported) {
			t.Errorf("%s: %v", vdev, err)
		}
	}
	if err := d.CanNotify(t.Context(), web01, "xvda"); err != nil {
		t.Error(err)
	}
	if err := d.CanNotify(t.Context(), web01, "xvdz"); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("a disk that it has not: %v", err)
	}
}

func TestCanNotify_NotWhereTheGuestUsesWhatQEMUEmulates(t *testing.T) {
	h, d := serving(t)
	back := backendPath(0, "vbd", 7, "xvda")
	for _, c := range []struct {
		kind, state string
		want        error
	}{{"hvm", "4", nil}, {"hvm", "2", backend.ErrUnsupported}, {"pvh", "2", nil}, {"pv", "2", nil}} {
		h.Set("/libxl/7/type", c.kind, back+"/state", c.state)
		if err := d.CanNotify(t.Context(), web01, "xvda"); !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), "emulates") {
			t.Errorf("%s, state %s: %v, want %v", c.kind, c.state, err, c.want)
		}
	}
}

func TestNotifySize_WaitsUntilBlkbackHasTold(t *testing.T) {
	h, d := serving(t)
	back := backendPath(0, "vbd", 7, "xvda")
	done := make(chan error, 1)
	go func() { done <- d.NotifySize(context.Background(), web01, "xvda", 200*sectorBytes) }()
	select {
	case err := <-done:
		t.Fatalf("returned %v while the guest has the old size", err)
	case <-time.After(4 * sizePause):
	}
	h.Set(back+"/sectors", "200")
	if err := <-done; err != nil {
		t.Error(err)
	}
	// A guest that is not connected reads the size when it connects.
	h.Set(back+"/sectors", "100", back+"/state", "2")
	began := time.Now()
	if err := d.NotifySize(t.Context(), web01, "xvda", 200*sectorBytes); err != nil || time.Since(began) > sizeLimit/2 {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}

func TestNotifySize_IsNoErrorWhereBlkbackTakesLonger(t *testing.T) {
	_, d := serving(t)
	core, logs := observer.New(zap.WarnLevel)
	d.log = zap.New(core)
	if err := d.NotifySize(t.Context(), web01, "xvda", 200*sectorBytes); err != nil {
		t.Error(err)
	}
	if logs.FilterMessageSnippet("new size").Len() != 1 {
		t.Errorf("logged %v", logs.All())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.NotifySize(ctx, web01, "xvda", 200*sectorBytes); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestNotifySize_IsNoErrorWhereXenstoredIsAway(t *testing.T) {
	h, d := serving(t)
	if err := d.CanNotify(t.Context(), web01, "xvda"); err != nil {
		t.Fatal(err)
	}
	h.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 4*sizePause)
	defer cancel()
	if err := d.NotifySize(ctx, web01, "xvda", 200*sectorBytes); err != nil {
		t.Errorf("the disk has grown, and is to grow again: %v", err)
	}
	h.Start()
}

func TestDevice_IsOnlyWhatTheToolstackWrote(t *testing.T) {
	h, d := serving(t)
	front := "/local/domain/7/device/vbd/51712"
	h.Set(front+"/backend", backendPath(0, "vbd", 7, "xvdb"), front+"/dev", "xvdz")
	if _, err := d.device(t.Context(), 7, "xvdz"); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("what the guest calls its disk: %v", err)
	}
	h.Set(libxlPath(7, "xvda")+"/backend", "/local/domain/7/data")
	if _, err := d.device(t.Context(), 7, "xvda"); !errors.Is(err, backend.ErrCorrupt) {
		t.Errorf("a backend that is none: %v", err)
	}
	h.Set(libxlPath(7, "xvda")+"/backend", backendPath(0, "vbd", 7, "xvda"))
	h.Permit(libxlPath(7, "xvda"), "n0", "b7")
	if _, err := d.device(t.Context(), 7, "xvda"); !errors.Is(err, backend.ErrPermission) {
		t.Errorf("one that the guest may write: %v", err)
	}
}

// tools replaces xl and xenstore-write by scripts: what they are asked for is in the log, and they answer when the test has done
// in xenstore what they do.
type tools struct {
	t    *testing.T
	dir  string
	does map[string]func() string // by the first two words; what it returns is said on standard error, and is a failure
}

func (h *host) tools(d *Driver, does map[string]func() string) *tools {
	h.t.Helper()
	x := &tools{t: h.t, dir: h.t.TempDir(), does: does}
	script := `#!/bin/sh
cd "$(dirname "$0")"
echo "${0##*/} $*" >>log
echo "${0##*/} $1" >ask.new; mv ask.new ask
while ! [ -e answer ]; do sleep 0.01; done
cat answer >&2; [ -s answer ]; failed=$?; rm answer
exit $((1 - failed))
`
	for _, name := range []string{"xl", "xenstore-write"} {
		if err := os.WriteFile(filepath.Join(x.dir, name), []byte(script), 0o700); err != nil {
			h.t.Fatal(err)
		}
	}
	d.toolstack, d.writer = x.dir+"/xl", x.dir+"/xenstore-write"
	d.sysfs = x.dir
	x.version("4", "17")
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
				x.answer()
			}
		}
	}()
	h.t.Cleanup(func() { close(done); <-ended })
	return x
}

func (x *tools) answer() {
	ask, err := os.ReadFile(x.dir + "/ask")
	if err != nil {
		return
	}
	os.Remove(x.dir + "/ask")
	answer := ""
	f := x.does[strings.TrimSpace(string(ask))]
	if f == nil {
		answer = "nobody expects this"
	} else {
		answer = f()
	}
	if answer == "hang" {
		return
	}
	must := os.WriteFile(x.dir+"/answer.new", []byte(answer), 0o600)
	if must == nil {
		os.Rename(x.dir+"/answer.new", x.dir+"/answer")
	}
}

func (x *tools) version(major, minor string) {
	x.t.Helper()
	dir := x.dir + "/hypervisor/version"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		x.t.Fatal(err)
	}
	for name, text := range map[string]string{"major": major, "minor": minor} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text+"\n"), 0o600); err != nil {
			x.t.Fatal(err)
		}
	}
}

func (x *tools) wantAsked(want ...string) {
	x.t.Helper()
	text, _ := os.ReadFile(x.dir + "/log")
	if got := strings.TrimSpace(string(text)); got != strings.Join(want, "\n") {
		x.t.Errorf("asked for\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

var newDisk = backend.Disk{VDev: "xvdb", Backend: "phy", Format: "raw", Source: "/dev/vg0/more", Mode: backend.ReadWrite}

const attachMore = "xl block-attach 7 format=raw,backendtype=phy,vdev=xvdb,access=rw,target=/dev/vg0/more"

func TestAttach_WaitsUntilTheGuestHasConnected(t *testing.T) {
	h, d := serving(t)
	x := h.tools(d, map[string]func() string{"xl block-attach": func() string {
		h.attach(7, 0, "xvdb", "phy", newDisk.Source)
		return ""
	}})
	done := make(chan error, 1)
	go func() { done <- d.Attach(context.Background(), web01, newDisk) }()
	eventually(t, "attached", func() bool { _, err := d.device(t.Context(), 7, "xvdb"); return err == nil })
	select {
	case err := <-done:
		t.Fatalf("returned %v before the guest has connected", err)
	case <-time.After(500 * time.Millisecond):
	}
	h.connect(backendPath(0, "vbd", 7, "xvdb"), "fd:2", newDisk.Source, "100")
	if err := <-done; err != nil {
		t.Error(err)
	}
	x.wantAsked(attachMore)
	if err := d.Attach(t.Context(), web01, newDisk); !errors.Is(err, backend.ErrExist) {
		t.Errorf("attached twice: %v", err)
	}
	x.wantAsked(attachMore)
}

func TestAttach_IsTakenBackWhereItFails(t *testing.T) {
	gone := func(h *host) func() string {
		return func() string { h.detach(7, 0, "xvdb", "vbd"); return "" }
	}
	for _, c := range []struct {
		name     string
		attach   func(h *host) string
		deadline time.Duration
		sentinel error
		words    string
		asked    []string
	}{
		{"xl fails, and clears up", func(h *host) string { return "libxl_device_disk_add failed." }, time.Minute, backend.ErrIO, "disk_add failed",
			[]string{attachMore}},
		{"xl fails half-way", func(h *host) string {
			h.attach(7, 0, "xvdb", "phy", newDisk.Source)
			return "libxl_device_disk_add failed."
		}, time.Minute, backend.ErrIO, "disk_add failed", []string{attachMore, "xl block-detach --force 7 xvdb"}},
		{"the guest does not connect", func(h *host) string {
			h.attach(7, 0, "xvdb", "phy", newDisk.Source)
			return ""
		}, time.Second, backend.ErrTimeout, "has not connected", []string{attachMore, "xl block-detach --force 7 xvdb"}},
		{"xl hangs", func(h *host) string {
			h.attach(7, 0, "xvdb", "phy", newDisk.Source)
			return "hang"
		}, time.Second, backend.ErrTimeout, "block-attach", []string{attachMore, "xl block-detach --force 7 xvdb"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, d := serving(t)
			x := h.tools(d, map[string]func() string{"xl block-attach": func() string { return c.attach(h) }, "xl block-detach": gone(h)})
			ctx, cancel := context.WithTimeout(t.Context(), c.deadline)
			defer cancel()
			if err := d.Attach(ctx, web01, newDisk); !errors.Is(err, c.sentinel) || !strings.Contains(err.Error(), c.words) {
				t.Errorf("error is %v", err)
			}
			x.wantAsked(c.asked...)
			if _, err := d.device(t.Context(), 7, "xvdb"); !errors.Is(err, backend.ErrNotExist) {
				t.Errorf("the disk is left: %v", err)
			}
		})
	}
}

func TestAttach_OutlastsALostConnection(t *testing.T) {
	h, d := serving(t)
	x := h.tools(d, map[string]func() string{"xl block-attach": func() string {
		h.attach(7, 0, "xvdb", "phy", newDisk.Source)
		h.connect(backendPath(0, "vbd", 7, "xvdb"), "fd:2", newDisk.Source, "100")
		h.Stop()
		time.AfterFunc(500*time.Millisecond, h.Start)
		return ""
	}})
	if err := d.Attach(t.Context(), web01, newDisk); err != nil {
		t.Error(err)
	}
	x.wantAsked(attachMore)
}

func TestAttach_TakesNothingBackThatSomebodyElseHasAttached(t *testing.T) {
	h, d := serving(t)
	x := h.tools(d, map[string]func() string{"xl block-attach": func() string {
		h.attach(7, 0, "xvdb", "phy", "/dev/vg0/admins") // a moment before
		return "libxl: error: device already exists in xenstore"
	}})
	if err := d.Attach(t.Context(), web01, newDisk); !errors.Is(err, backend.ErrIO) || !strings.Contains(err.Error(), "already exists") {
		t.Errorf("error is %v", err)
	}
	x.wantAsked(attachMore)
	if _, err := d.device(t.Context(), 7, "xvdb"); err != nil {
		t.Errorf("the other disk: %v", err)
	}
}

func TestAttach_RefusesWhatXLWouldReadOtherwise(t *testing.T) {
	h, d := serving(t)
	x := h.tools(d, nil)
	for name, edit := range map[string]func(k *backend.Disk){
		"vdev":          func(k *backend.Disk) { k.VDev = "xvdb,access=ro" },
		"no vdev":       func(k *backend.Disk) { k.VDev = "" },
		"relative":      func(k *backend.Disk) { k.Source = "more" },
		"no source":     func(k *backend.Disk) { k.Source = "" },
		"lines":         func(k *backend.Disk) { k.Source = "/dev/a\nb" },
		"format":        func(k *backend.Disk) { k.Format = "raw, script=x" },
		"backend":       func(k *backend.Disk) { k.Backend = "phy,script=x" },
		"mode":          func(k *backend.Disk) { k.Mode = "rw,x" },
		"cdrom":         func(k *backend.Disk) { k.CDROM = true },
		"driver domain": func(k *backend.Disk) { k.BackendDomain = "store" },
	} {
		k := newDisk
		edit(&k)
		if err := d.Attach(t.Context(), web01, k); !errors.Is(err, backend.ErrInvalid) && !errors.Is(err, backend.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := d.Attach(t.Context(), backend.Domain{Name: "Domain-0"}, newDisk); !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("domain 0: %v", err)
	}
	x.wantAsked()
	if spec, err := diskSpec(backend.Disk{VDev: "xvdc", Source: "/srv/a, b.img", Mode: backend.ReadOnly}); err != nil || spec != "format=raw,vdev=xvdc,access=ro,target=/srv/a, b.img" {
		t.Errorf("%q, %v", spec, err)
	}
}

func TestDetach_TakesTheDisk(t *testing.T) {
	h, d := serving(t)
	x := h.tools(d, map[string]func() string{"xl block-detach": func() string { h.detach(7, 0, "xvda", "vbd"); return "" }})
	if err := d.Detach(t.Context(), web01, "xvda"); err != nil {
		t.Error(err)
	}
	if err := d.Detach(t.Context(), web01, "xvda"); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("detached twice: %v", err)
	}
	x.wantAsked("xl block-detach 7 xvda")
}

func TestDetach_ThatTheGuestRefusesChangesNothing(t *testing.T) {
	h, d := serving(t)
	back := backendPath(0, "vbd", 7, "xvda")
	refused := func() string {
		h.Set(back+"/online", "0", back+"/state", "5")
		return "libxl_device_disk_safe_remove failed."
	}
	restored := func() string { h.Set(back+"/online", "1", back+"/state", "4"); return "" }
	x := h.tools(d, map[string]func() string{"xl block-detach": refused, "xenstore-write " + back + "/online": restored})
	if err := d.Detach(t.Context(), web01, "xvda"); !errors.Is(err, backend.ErrBusy) || !strings.Contains(err.Error(), "safe_remove failed") {
		t.Errorf("error is %v", err)
	}
	x.wantAsked("xl block-detach 7 xvda", "xenstore-write "+back+"/online 1 "+back+"/state 4")
	for name, want := range map[string]string{"online": "1", "state": "4"} {
		if got, err := d.read(t.Context(), back+"/"+name); got != want {
			t.Errorf("%s is %q, %v", name, got, err)
		}
	}
}

func TestDetach_SaysWhatBecameOfADiskThatWasNotDetached(t *testing.T) {
	back := backendPath(0, "vbd", 7, "xvda")
	for _, c := range []struct {
		name  string
		does  func(h *host)
		want  error
		words string
	}{
		{"not even asked", func(h *host) {}, backend.ErrBusy, "does not let go"},
		{"gone at the last moment", func(h *host) { h.detach(7, 0, "xvda", "vbd") }, nil, ""},
		{"gone while it is looked at", func(h *host) { h.Remove(back) }, nil, ""},
		{"half detached", func(h *host) { h.Set(back+"/online", "0", back+"/state", "6") }, backend.ErrIO, "half detached"},
		{"not restored", func(h *host) { h.Set(back+"/online", "0", back+"/state", "5") }, backend.ErrIO, "still asked to"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, d := serving(t)
			h.tools(d, map[string]func() string{"xl block-detach": func() string { c.does(h); return "failed" }})
			err := d.Detach(t.Context(), web01, "xvda")
			if c.want == nil && err != nil || c.want != nil && (!errors.Is(err, c.want) || !strings.Contains(err.Error(), c.words)) {
				t.Errorf("error is %v", err)
			}
		})
	}
}

func TestDetach_IsNotAskedOfAXenThatTakesDisksByForce(t *testing.T) {
	h, d := serving(t)
	x := h.tools(d, nil)
	for _, v := range [][2]string{{"4", "14"}, {"3", "20"}, {"x", "y"}} {
		x.version(v[0], v[1])
		if err := d.Detach(t.Context(), web01, "xvda"); !errors.Is(err, backend.ErrUnsupported) {
			t.Errorf("Xen %v: %v", v, err)
		}
	}
	d.sysfs = "/none"
	if err := d.Detach(t.Context(), web01, "xvda"); !errors.Is(err, backend.ErrUnsupported) {
		t.Errorf("an unknown version: %v", err)
	}
	x.wantAsked()
	x.version("4", "15")
	if err := detaches(x.dir); err != nil {
		t.Error(err)
	}
	x.version("5", "0")
	if err := detaches(x.dir); err != nil {
		t.Error(err)
	}
}
