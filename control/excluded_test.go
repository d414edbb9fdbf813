package control

import (
	"context"
	"errors"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/fake"
)

// excluder is a store that takes no disk, and says why of one.
type excluder struct {
	backend.Store
	vdev string
}

func (excluder) Name() string { return "excluder" }
func (excluder) Volumes(_ context.Context, disks []backend.Disk) ([]backend.Volume, error) {
	return make([]backend.Volume, len(disks)), nil
}
func (excluder) Pools(context.Context) ([]backend.Pool, error) { return nil, nil }
func (e excluder) Excluded(_ context.Context, d backend.Disk) error {
	if d.VDev != e.vdev {
		return nil
	}
	return backend.Because(backend.ErrUnsupported, "it is left out by --vg")
}

func TestExcluded_IsWhatARefusalSays(t *testing.T) {
	var fakeStore backend.Store
	b := newBench(t, setup{caps: fake.Pause, options: func(o *Options) {
		fakeStore = o.Stores[0]
		o.Stores = []backend.Store{excluder{fakeStore, "xvda"}, fakeStore}
	}})
	for vdev, want := range map[string]string{"xvda": "it is left out by --vg", "xvdb": "its store " + fakeStore.Name() + " does not resize"} {
		err := b.Resize(t.Context(), "web01", vdev, "+1G")
		if !errors.Is(err, backend.ErrUnsupported) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", vdev, err)
		}
	}
	err := b.Snapshot(t.Context(), "web01", "s")
	if !errors.Is(err, backend.ErrUnsupported) || !strings.Contains(err.Error(), "it is left out by --vg") || strings.Contains(err.Error(), "has no snapshots") {
		t.Errorf("%v", err)
	}
}
