package fake

import (
	"errors"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest"
)

func TestStore_KeepsTheContract(t *testing.T) {
	for _, kind := range []string{"instant", "copies", "thick"} {
		t.Run(kind, func(t *testing.T) {
			backendtest.Store(t, func(t *testing.T) backendtest.StoreFixture {
				copies := kind == "copies"
				s := NewStore("fakestore")
				s.SetCopies(copies)
				if kind == "thick" {
					s.SetReserve(1 << 20)
				}
				s.SetUnit(512)
				s.SetCapacity(1 << 26)
				s.AddVolume("/images/a", make([]byte, 2<<20))
				s.AddMissing("/images/missing")
				return backendtest.StoreFixture{
					New:       func(*testing.T) backend.Store { return s.Driver(All) },
					Disk:      backend.Disk{VDev: "xvda", Format: "raw", Source: "/images/a", Mode: backend.ReadWrite},
					SizeBytes: 2 << 20,
					Missing:   backend.Disk{VDev: "xvdb", Format: "raw", Source: "/images/missing", Mode: backend.ReadWrite},
					Foreign:   []backend.Disk{{VDev: "xvdc", Format: "raw", Source: "/dev/vg/lv"}},
					Write:     func(_ *testing.T, p []byte, off int64) { s.Write("/images/a", off, p) },
					Copies:    copies,
					Reserve:   kind == "thick",
				}
			})
		})
	}
}

func TestHypervisor_KeepsTheContract(t *testing.T) {
	for _, caps := range []Caps{0, All} {
		backendtest.Hypervisor(t, func(*testing.T) backend.Hypervisor {
			h := NewHost()
			h.AddDomain("web01", "11111111-2222-3333-4444-555555555555", nil, "xvda", "xvdb")
			h.AddDomain("web02", "", nil, "xvda")
			h.Hypervisor.Start("web02")
			h.Hypervisor.Change("web01", func(d *backend.Domain) { d.Warnings = []string{"web01.cfg:1: unknown option"} })
			return h.Hypervisor.Driver(caps)
		})
	}
}

func TestDriver_HasTheCapabilitiesAskedForAndNoOther(t *testing.T) {
	for caps := Caps(0); caps <= All; caps++ {
		h := NewHost()
		_, pauses := h.Hypervisor.Driver(caps).(backend.Pauser)
		_, notifies := h.Hypervisor.Driver(caps).(backend.SizeNotifier)
		s := h.Store.Driver(caps)
		_, snapshots := s.(backend.Snapshotter)
		_, fills := s.(backend.Filler)
		_, resizes := s.(backend.Resizer)
		_, reserves := s.(backend.Reserver)
		_, watches := s.(backend.Watcher)
		_, attaches := h.Hypervisor.Driver(caps).(backend.Attacher)
		_, creates := s.(backend.Creator)
		if attaches != (caps&Attach != 0) || creates != (caps&(Create|Resize) == Create|Resize) {
			t.Errorf("%b: attaches %t, creates %t", caps, attaches, creates)
		}
		if pauses != (caps&Pause != 0) || notifies != (caps&Notify != 0) || fills != (caps&Fill != 0) ||
			resizes != (caps&Resize != 0) || snapshots != (caps&(Snapshot|Fill|Reserve) != 0) ||
			reserves != (caps&Reserve != 0) || watches != reserves {
			t.Errorf("%b: pauses %t, notifies %t, snapshots %t, fills %t, resizes %t, reserves %t, watches %t", caps, pauses, notifies, snapshots, fills, resizes, reserves, watches)
		}
	}
}

func TestFault_HitsTheCallItIsPlantedFor(t *testing.T) {
	s := NewStore("fakestore")
	s.AddVolume("/a", make([]byte, 1))
	s.AddVolume("/b", make([]byte, 1))
	d := s.Driver(0)
	clear := s.Plant(Fault{Op: "Open", ID: "/b", Nth: 2, Err: backend.ErrIO})
	open := func(id string) error {
		dev, err := d.Open(t.Context(), backend.Volume{ID: id})
		if err == nil {
			err = dev.Close()
		}
		return err
	}
	for i, c := range []struct {
		id   string
		fail bool
	}{{"/a", false}, {"/b", false}, {"/a", false}, {"/b", true}, {"/b", false}} {
		if err := open(c.id); errors.Is(err, backend.ErrIO) != c.fail {
			t.Errorf("call %d: %v", i, err)
		}
	}
	clear()
	if s.Calls("Open") != 5 || s.OpenDevices() != 0 {
		t.Errorf("%d calls, %d open", s.Calls("Open"), s.OpenDevices())
	}
}
