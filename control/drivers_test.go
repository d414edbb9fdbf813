package control

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"domfs/backend"
)

// slowHypervisor takes its time to answer.
type slowHypervisor struct {
	backend.Hypervisor
	takes time.Duration
}

func (s slowHypervisor) Domains(ctx context.Context) ([]backend.Domain, error) {
	time.Sleep(s.takes)
	return s.Hypervisor.Domains(ctx)
}

func TestInventory_OfASlowHostIsNotReadAnewForEachRequest(t *testing.T) {
	const takes = 100 * time.Millisecond
	b := newBench(t, setup{noStart: true, options: func(o *Options) {
		o.Hypervisors[0] = slowHypervisor{o.Hypervisors[0], takes}
	}})
	read := func() *Inventory {
		t.Helper()
		inv, err := b.Inventory(t.Context())
		b.must(err)
		return inv
	}
	first := read()
	for range 20 {
		time.Sleep(5 * time.Millisecond) // MaxAge has passed
		read()
	}
	if n := b.Stats()["inventory_reads"]; n > 2 {
		t.Errorf("read %d times", n)
	}
	eventually(t, "it is read again", func() bool { return read() != first })
	// A change is seen at once.
	before := b.Stats()["inventory_reads"]
	b.invalidate()
	read()
	if n := b.Stats()["inventory_reads"] - before; n != 1 {
		t.Errorf("after a change it was read %d times", n)
	}
}

func TestInventory_OfAVerySlowHostIsReadAgainNonetheless(t *testing.T) {
	b := newBench(t, setup{noStart: true})
	b.inv()
	c := &b.Host.inventory
	for _, v := range []struct {
		age  time.Duration
		anew bool
	}{{maxSlowAge / 2, false}, {maxSlowAge + time.Second, true}} {
		c.mu.Lock()
		old := *c.current
		old.took, old.began = time.Hour, time.Now().Add(-v.age)
		c.current = &old
		c.mu.Unlock()
		inv, err := b.Inventory(t.Context())
		b.must(err)
		if anew := inv != &old; anew != v.anew {
			t.Errorf("a reading that took an hour, %s old: read anew is %v", v.age, anew)
		}
	}
}

// defective panics when it is asked.
type defective struct{ backend.Hypervisor }

func (defective) Name() string { return "defective" }

func (defective) Domains(context.Context) ([]backend.Domain, error) {
	var none []backend.Domain
	return none[1:2], nil
}

type defectiveStore struct{ backend.Store }

func (defectiveStore) Name() string { return "broken" }

func (defectiveStore) Volumes(context.Context, []backend.Disk) ([]backend.Volume, error) {
	panic("out of luck")
}

func TestInventory_SurvivesADriverThatPanics(t *testing.T) {
	b := newBench(t, setup{options: func(o *Options) {
		o.Hypervisors = append(o.Hypervisors, defective{o.Hypervisors[0]})
		o.Stores = append([]backend.Store{defectiveStore{o.Stores[0]}}, o.Stores...)
	}})
	b.fake.Hypervisor.Change("web01", func(d *backend.Domain) {
		d.Disks = append(d.Disks, backend.Disk{VDev: "xvdc", Source: "/nobodys"})
	})
	for range 2 { // it is asked again, not waited for
		d := b.inv().Domain("web01")
		if d == nil || d.Volumes[0].Err != nil || d.Volumes[0].Store != "fakestore" {
			t.Fatalf("domain %+v", d)
		}
		if err := d.Volumes[2].Err; !errors.Is(err, backend.ErrIO) || !strings.Contains(err.Error(), "store broken failed on a defect") {
			t.Errorf("the reason is %v", err)
		}
	}
	for _, what := range []string{"hypervisor defective", "store broken"} {
		var stack string
		for _, e := range b.logs.FilterMessageSnippet("this is a defect").All() {
			if e.ContextMap()["driver"] == what {
				stack, _ = e.ContextMap()["stack"].(string)
			}
		}
		if !strings.Contains(stack, "drivers_test.go") {
			t.Errorf("the log does not say where %s failed: %q", what, stack)
		}
	}
}
