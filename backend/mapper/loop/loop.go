package loop

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"domfs/backend"
	"domfs/backend/fault"
	"domfs/backend/hostdev"
	"domfs/backend/run"
	"domfs/backend/syserr"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Mapper is a backend.Mapper by loop devices.
type Mapper struct {
	log *zap.Logger
	run *run.Runner
	mu  sync.Mutex // one change at a time
}

var _ backend.Mapper = (*Mapper)(nil)

const (
	prefix = "domfs:" // of the names that devices are told by
	// maxMappings is how many devices a snapshot can have: the host's loop devices are one list.
	maxMappings = 256
	sectorBytes = 512
)

// New makes a Mapper; log may be nil.
func New(log *zap.Logger) *Mapper {
	if log == nil {
		log = zap.NewNop()
	}
	return &Mapper{log: log, run: run.New(log)}
}

// Available says why the host cannot map by loop devices, nil if it can.
func Available() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("only root can use loop devices: %w", backend.ErrPermission)
	}
	return hostdev.LoopAvailable()
}

// Name implements backend.Mapper.
func (m *Mapper) Name() string { return "loop" }

// Mappings implements backend.Mapper.
func (m *Mapper) Mappings(context.Context) (map[string][]backend.Mapping, error) {
	out := map[string][]backend.Mapping{}
	for _, l := range (hostdev.Host{}).Loops(prefix) {
		if mp, ok := parse(l); ok {
			out[mp.SetID] = append(out[mp.SetID], mp)
		}
	}
	for _, of := range out {
		hostdev.SortMappings(of)
	}
	return out, nil
}

func setPrefix(setID string) string { return prefix + hostdev.EscapeWord(setID) + ":" }

func parse(l hostdev.AttachedLoop) (backend.Mapping, bool) {
	set, path, ok := strings.Cut(strings.TrimPrefix(l.Name, prefix), ":")
	return backend.Mapping{SetID: hostdev.Unescape(set), Name: hostdev.Unescape(path), Device: l.Device}, ok
}

// span is a volume of a request: a range of a disk.
type span struct {
	name          string
	disk          *backend.MapDisk
	start, length int64 // bytes
}

// Map implements backend.Mapper.
func (m *Mapper) Map(ctx context.Context, r backend.MapRequest) (made []backend.Mapping, left []backend.Unmapped, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := hostdev.Quiet(ctx, m.run); err != nil {
		return nil, nil, err
	}
	spans, left := plan(r)
	if more := len(spans) - maxMappings; more > 0 { // a guest must not be able to keep the others from having one
		name := spans[maxMappings].name
		left = append(left, backend.Unmapped{Name: name, Err: backend.Because(backend.ErrUnsupported, "%s and what follows, %d volumes: a snapshot has loop devices of %d at most", name, more, maxMappings)})
		spans = spans[:maxMappings]
	}
	there := map[string]hostdev.AttachedLoop{}
	for _, l := range (hostdev.Host{}).Loops(setPrefix(r.SetID)) {
		there[l.Name] = l
	}
	var fresh []backend.Mapping
	defer func() {
		if err == nil {
			return
		}
		fault.Point("loop.undo")
		for _, f := range slices.Backward(fresh) {
			if err := hostdev.Detach(f.Device, setPrefix(r.SetID)+hostdev.Escape(f.Name)); err != nil {
				m.log.Error("a loop device is left over; the next start removes it", zap.String("device", f.Device), zap.Error(err))
			}
		}
	}()
	for _, s := range spans {
		if ctx.Err() != nil {
			return nil, nil, fmt.Errorf("mapping: %w: %w", backend.ErrTimeout, ctx.Err())
		}
		name := setPrefix(r.SetID) + hostdev.Escape(s.name)
		mp := backend.Mapping{SetID: r.SetID, Name: s.name}
		if l, ok := there[name]; ok {
			mp.Device = l.Device
			made = append(made, mp)
			continue
		}
		label, err := hasLabel(s)
		if err != nil {
			return nil, nil, err
		}
		if why := unfit(s, name, label); why != nil {
			left = append(left, backend.Unmapped{Name: s.name, Err: why})
			continue
		}
		fault.Point("loop.attach")
		f, err := hostdev.Loop{Path: s.disk.Path, Offset: s.start, Bytes: s.length, Name: name}.Attach()
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", s.name, err)
		}
		mp.Device = f.Name()
		f.Close()
		fault.Point("loop.attached")
		fresh = append(fresh, mp)
		made = append(made, mp)
	}
	hostdev.SortMappings(made)
	return made, left, nil
}

// unfit says why a volume gets no device.
func unfit(s span, name string, label bool) error {
	switch {
	case label:
		return backend.Because(backend.ErrUnsupported, "%s: the host's LVM would show it as a physical volume, and loop devices cannot be hidden from it: load the kernel's module dm-mod", s.name)
	case len(name) > hostdev.MaxLoopName:
		return backend.Because(backend.ErrUnsupported, "%s: the name is too long for a loop device to be told by", s.name)
	}
	return nil
}

// plan finds which range of which disk each volume is.
func plan(r backend.MapRequest) (spans []span, left []backend.Unmapped) {
	at := map[string]span{}
	leave := func(name, why string) {
		left = append(left, backend.Unmapped{Name: name, Err: backend.Because(backend.ErrUnsupported, "%s: %s", name, why)})
	}
	add := func(s span) {
		limit := s.disk.SizeBytes
		switch {
		case s.start < 0 || s.length <= 0 || s.start%sectorBytes != 0 || s.start > limit || s.length > limit-s.start:
			leave(s.name, "it is not whole sectors within its disk")
		default:
			s.length -= s.length % sectorBytes
			at[s.name] = s
			spans = append(spans, s)
		}
	}
	for i := range r.Disks {
		d := &r.Disks[i]
		add(span{d.VDev, d, 0, d.SizeBytes})
		for _, p := range d.Parts {
			add(span{d.VDev + "/" + p.Name, d, p.Start, p.Length})
		}
	}
	for _, v := range r.Volumes {
		if len(v.Segments) != 1 || len(v.Segments[0].Targets) != 1 {
			leave(v.Name, "only what lies in one piece can be shown by a loop device: load the kernel's module dm-mod")
			continue
		}
		t := v.Segments[0].Targets[0]
		on, ok := at[t.Member]
		if !ok || t.Offset < 0 || t.Offset > on.length || v.SizeBytes > on.length-t.Offset {
			leave(v.Name, "it is not within "+t.Member)
			continue
		}
		add(span{v.Name, on.disk, on.start + t.Offset, v.SizeBytes})
	}
	return spans, left
}

func hasLabel(s span) (bool, error) {
	f, err := os.OpenFile(s.disk.Path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false, syserr.Words{}.Failed("open", s.disk.Path, err)
	}
	defer f.Close()
	return hostdev.HasPVLabel(f, s.start, s.length)
}

// Unmap implements backend.Mapper.
func (m *Mapper) Unmap(ctx context.Context, setID string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	host := hostdev.Host{}
	loops := host.Loops(setPrefix(setID))
	// None is detached while one of them is in use: the set stays as it was.
	for try := 0; ; try++ {
		i := slices.IndexFunc(loops, func(l hostdev.AttachedLoop) bool { return host.Holder(l.Rdev) != "" })
		if i < 0 {
			break
		}
		if try == hostdev.RemoveTries {
			who := host.Holder(loops[i].Rdev)
			mp, _ := parse(loops[i])
			return hostdev.InUse(mp, who)
		}
		if err := hostdev.AwaitRemoval(ctx); err != nil {
			return err
		}
	}
	for _, l := range loops {
		fault.Point("loop.detach")
		if err := hostdev.Detach(l.Device, l.Name); err != nil {
			return err
		}
	}
	return nil
}
