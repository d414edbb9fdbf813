package xen

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest"
	"domfs/backend/backendtest/labneed"
	"domfs/backend/backendtest/labxen"
)

// TestLabXen_TheDriver asks a real Xen about a real guest.
func TestLabXen_TheDriver(t *testing.T) {
	labxen.Need(t)
	labneed.Leftovers(t)
	root := labneed.File(t, 96<<20)
	labxen.MakeRoot(t, root, labxen.Whole)
	guest := labxen.NewDomU(t, labxen.Options{Layout: labxen.Whole, Disks: []labxen.Disk{{Target: root}}, Idle: true})
	for _, one := range []struct {
		name string
		test func(*testing.T, *Driver, backend.Domain)
	}{
		{"KeepsTheContract", keepsTheContract},
		{"DomainsAreThoseOfXL", domainsAreThoseOfXL},
		{"StatesAndNamesFollowTheAdmin", statesAndNamesFollowTheAdmin},
		{"PauseIsXensAndIsUndoneOnce", pauseIsUndoneOnce},
	} {
		t.Run(one.name, func(t *testing.T) {
			d := New(Options{})
			t.Cleanup(d.store.Close)
			for _, dom := range domains(t, d) {
				if dom.Name == guest.Name && dom.State == backend.StateRunning {
					one.test(t, d, dom)
					return
				}
			}
			t.Fatalf("%s does not run", guest.Name)
		})
	}
}

func tool(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v: %s", argv, err, out)
	}
	return strings.TrimSpace(string(out))
}

func keepsTheContract(t *testing.T, _ *Driver, _ backend.Domain) {
	backendtest.Hypervisor(t, func(t *testing.T) backend.Hypervisor {
		d := New(Options{})
		t.Cleanup(d.store.Close)
		return d
	})
}

func domainsAreThoseOfXL(t *testing.T, d *Driver, _ backend.Domain) {
	for _, dom := range domains(t, d) {
		if dom.Err != nil || len(dom.Warnings) != 0 {
			t.Errorf("%s: %v, %q", dom.Name, dom.Err, dom.Warnings)
		}
		if got := tool(t, "xl", "domname", fmt.Sprint(dom.ID)); got != dom.Name {
			t.Errorf("domain %d is %s, by xl %s", dom.ID, dom.Name, got)
		}
		if got := tool(t, "xenstore-read", tool(t, "xenstore-read", fmt.Sprintf("/local/domain/%d/vm", dom.ID))+"/uuid"); got != dom.UUID {
			t.Errorf("%s has the UUID %s, by xenstore-read %s", dom.Name, dom.UUID, got)
		}
		// Vdev BE handle state evt-ch ring-ref BE-path, of each disk; its first line is the head.
		var want []string
		for _, line := range strings.Split(tool(t, "xl", "block-list", fmt.Sprint(dom.ID)), "\n")[1:] {
			f := strings.Fields(line)
			back := f[len(f)-1]
			want = append(want, tool(t, "xenstore-read", back+"/dev")+" "+tool(t, "xenstore-read", back+"/params"))
		}
		var got []string
		for _, k := range dom.Disks {
			s := k.Source
			if k.Backend == "qdisk" {
				s = strings.Replace(k.Format, "raw", "aio", 1) + ":" + s
			}
			got = append(got, k.VDev+" "+s)
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s has the disks %q, by xl %q", dom.Name, got, want)
		}
	}
}

func statesAndNamesFollowTheAdmin(t *testing.T, d *Driver, dom backend.Domain) {
	find := func() backend.Domain {
		for _, one := range domains(t, d) {
			if one.ID == dom.ID {
				return one
			}
		}
		t.Fatalf("domain %d is gone", dom.ID)
		return backend.Domain{}
	}
	id := fmt.Sprint(dom.ID)
	tool(t, "xl", "pause", id)
	state := find().State
	tool(t, "xl", "unpause", id)
	if state != backend.StatePaused {
		t.Errorf("paused, it is %s", state)
	}
	if now := find().State; now != backend.StateRunning {
		t.Errorf("unpaused, it is %s", now)
	}
	var told atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.Watch(ctx, func() { told.Add(1) })
	}()
	defer func() { cancel(); <-ended }()
	eventually(t, "Watch begins", func() bool { return told.Load() > 0 })
	time.Sleep(time.Second)
	for _, name := range []string{"domfs-renamed", dom.Name} {
		before := told.Load()
		tool(t, "xl", "rename", id, name)
		eventually(t, "told of the name "+name, func() bool { return told.Load() > before })
		if now := find(); now.Name != name || now.UUID != dom.UUID {
			t.Errorf("renamed to %s, it is %+v", name, now)
		}
	}
}
