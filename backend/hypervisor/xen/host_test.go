package xen

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/hypervisor/xen/xenstore/xenstoretest"
)

// host is a Xen host: a xenstored in which what libxl would write is written, and what xl lists.
type host struct {
	*xenstoretest.Server
	t *testing.T

	mu    sync.Mutex
	names map[int]string // guarded by mu; what xl lists
	flags map[int]string // guarded by mu
	lists int            // guarded by mu
	xlErr error          // guarded by mu
}

func newHost(t *testing.T) *host {
	h := &host{Server: xenstoretest.New(t), t: t, names: map[int]string{0: "Domain-0"}, flags: map[int]string{0: "r-----"}}
	h.Set("/local/domain/0/name", "Domain-0", "/vm", "", "/libxl", "")
	h.Permit("/local/domain/0", "n0")
	return h
}

// open is a driver of the host. Devices are what devices says, number by path.
func (h *host) open(devices map[string]uint64) *Driver {
	h.t.Helper()
	before := runtime.NumGoroutine()
	d := New(Options{Socket: h.Path()})
	d.gap = 5 * time.Millisecond
	d.xl = h.xl
	d.stat = func(path string) (uint64, bool) {
		n, ok := devices[path]
		return n, ok
	}
	h.t.Cleanup(func() {
		d.store.Close()
		eventually(h.t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before })
	})
	return d
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

func (h *host) xl(ctx context.Context) ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lists++
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if h.xlErr != nil {
		return nil, h.xlErr
	}
	var b strings.Builder
	b.WriteString("Name                                        ID   Mem VCPUs\tState\tTime(s)\n")
	for id, name := range h.names {
		fmt.Fprintf(&b, "%-40s %5d %5d %5d     %s  %8.1f\n", name, id, 512, 2, h.flags[id], 1.5)
	}
	return []byte(b.String()), nil
}

// flag sets what xl shows as the state of a domain; "" ends it.
func (h *host) flag(id int, flags string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.flags[id] = flags; flags == "" {
		delete(h.flags, id)
		delete(h.names, id)
	}
}

func uuidOf(id int) string { return fmt.Sprintf("11111111-2222-3333-4444-%012d", id) }

// create makes a domain as libxl does.
func (h *host) create(id int, name string) {
	home, vm, lib := fmt.Sprint("/local/domain/", id), "/vm/"+uuidOf(id), fmt.Sprint("/libxl/", id)
	h.Set(home, "", vm, "", lib+"/device", "", home+"/vm", vm, home+"/name", name, vm+"/name", name, vm+"/uuid", uuidOf(id), lib+"/type", "pv")
	guest := fmt.Sprint("r", id)
	h.Permit(home, "n0", guest)
	h.Permit(vm, "n0", guest)
	h.Permit(lib, "n0")
	for _, dir := range []string{"/device", "/data", "/control/shutdown", "/attr", "/error"} {
		h.Set(home+dir, "")
		h.Permit(home+dir, fmt.Sprint("n", id))
	}
	h.mu.Lock()
	h.names[id], h.flags[id] = name, "-b----"
	h.mu.Unlock()
	h.Fire("@introduceDomain")
}

// rename does as xl rename.
func (h *host) rename(id int, name string) {
	h.Set(fmt.Sprint("/local/domain/", id, "/name"), name, "/vm/"+uuidOf(id)+"/name", name)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.names[id] = name
}

// destroy ends a domain as libxl does.
func (h *host) destroy(id int) {
	h.Remove(fmt.Sprint("/libxl/", id), fmt.Sprint("/vm/", uuidOf(id)), fmt.Sprint("/local/domain/", id),
		fmt.Sprint("/local/domain/0/backend/vbd/", id), fmt.Sprint("/local/domain/0/backend/qdisk/", id))
	h.flag(id, "")
	h.Fire("@releaseDomain")
}

// devids are the numbers of virtual devices, as libxl makes them of names.
var devids = map[string]int{"xvda": 51712, "xvda1": 51713, "xvdb": 51728, "xvdc": 51744, "sda1": 2049, "hda": 768, "hdc": 5632}

func libxlPath(id int, vdev string) string {
	return fmt.Sprintf("/libxl/%d/device/vbd/%d", id, devids[vdev])
}
func backendPath(server int, kind string, id int, vdev string) string {
	return fmt.Sprintf("/local/domain/%d/backend/%s/%d/%d", server, kind, id, devids[vdev])
}

// attach gives a domain a disk as libxl does. more are further values, or others, by turns.
func (h *host) attach(id, server int, vdev, typ, params string, more ...string) {
	kind := map[string]string{"phy": "vbd", "qdisk": "qdisk"}[typ]
	lib, back, front := libxlPath(id, vdev), backendPath(server, kind, id, vdev), fmt.Sprintf("/local/domain/%d/device/vbd/%d", id, devids[vdev])
	values := []string{"params", params, "frontend-id", strconv.Itoa(id), "online", "1", "removable", "0", "bootable", "1", "state", "1", "dev", vdev,
		"type", typ, "mode", "w", "device-type", "disk", "discard-enable", "1"}
	if typ == "phy" {
		values = append(values, "script", "/etc/xen/scripts/block")
	}
	values = append(values, more...)
	h.Set(back, "", front, "")
	h.Permit(back, fmt.Sprint("n", server), fmt.Sprint("r", id))
	h.Permit(front, fmt.Sprint("n", id), fmt.Sprint("r", server))
	nodes := []string{front + "/backend", back, front + "/state", "1", lib + "/frontend", front, lib + "/backend", back}
	for i := 0; i < len(values); i += 2 {
		nodes = append(nodes, lib+"/"+values[i], values[i+1], back+"/"+values[i], values[i+1])
	}
	h.Set(nodes...)
}

// connect is what the backend and the script write once the guest uses a disk.
func (h *host) connect(back, device, path, sectors string) {
	h.Set(back+"/physical-device", device, back+"/physical-device-path", path, back+"/sectors", sectors, back+"/sector-size", "512", back+"/info", "0", back+"/state", "4")
}

// detach removes what libxl removes in the end.
func (h *host) detach(id, server int, vdev, kind string) {
	h.Remove(libxlPath(id, vdev), backendPath(server, kind, id, vdev), fmt.Sprintf("/local/domain/%d/device/vbd/%d", id, devids[vdev]))
}

func domains(t *testing.T, d *Driver) []backend.Domain {
	t.Helper()
	list, err := d.Domains(t.Context())
	if err != nil {
		t.Fatalf("Domains: %v", err)
	}
	return list
}

// one is the only domain.
func one(t *testing.T, d *Driver) backend.Domain {
	t.Helper()
	list := domains(t, d)
	if len(list) != 1 {
		t.Fatalf("%d domains: %+v", len(list), list)
	}
	return list[0]
}

func describe(disks []backend.Disk) string {
	var out []string
	for _, k := range disks {
		s := fmt.Sprintf("%s %s %s %s %s", k.VDev, k.Backend, k.Format, k.Source, k.Mode)
		if k.CDROM {
			s += " cdrom"
		}
		if k.Script != "" {
			s += " script=" + k.Script
		}
		if k.BackendDomain != "" {
			s += " by=" + k.BackendDomain
		}
		out = append(out, s)
	}
	return strings.Join(out, "\n")
}
