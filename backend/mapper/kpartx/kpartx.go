package kpartx

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"domfs/backend"
	"domfs/backend/devmapper"
	"domfs/backend/fault"
	"domfs/backend/hostdev"
	"domfs/backend/run"
	"domfs/backend/syserr"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Mapper is a backend.Mapper by device-mapper and kpartx.
type Mapper struct {
	log     *zap.Logger
	run     *run.Runner
	control *devmapper.Control
	mu      sync.Mutex // one change at a time
}

var _ backend.Mapper = (*Mapper)(nil)

const (
	// toolTimeout is for one call of a tool: kpartx waits for udev.
	toolTimeout = time.Minute
	undoTimeout = 2 * time.Minute
	nodeWait    = 10 * time.Second
	nodePoll    = 5 * time.Millisecond
	// maxArgument is what one argument of a program may have (MAX_ARG_STRLEN is 128 KiB).
	maxArgument = 96 << 10
)

// New makes a Mapper; log may be nil.
func New(log *zap.Logger) *Mapper {
	if log == nil {
		log = zap.NewNop()
	}
	return &Mapper{log: log, run: run.New(log), control: devmapper.New(devmapper.Node)}
}

// Available says why the host cannot map by device-mapper and kpartx, nil if it can.
func Available() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("only root can use device-mapper: %w", backend.ErrPermission)
	}
	fd, err := unix.Open(devmapper.Node, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return diskFailure(devmapper.Node, err)
	}
	unix.Close(fd)
	for _, tool := range []string{"dmsetup", "kpartx"} {
		if err := run.Installed(tool); err != nil {
			return err
		}
	}
	return nil
}

// Name implements backend.Mapper.
func (m *Mapper) Name() string { return "kpartx" }

// Mappings implements backend.Mapper.
func (m *Mapper) Mappings(ctx context.Context) (map[string][]backend.Mapping, error) {
	all, err := m.list(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string][]backend.Mapping{}
	for _, d := range all {
		out[d.setID] = append(out[d.setID], d.mapping())
	}
	for _, of := range out {
		hostdev.SortMappings(of)
	}
	return out, nil
}

func (d device) mapping() backend.Mapping {
	return backend.Mapping{SetID: d.setID, Name: d.path, Device: d.identity.path()}
}

// Map implements backend.Mapper.
func (m *Mapper) Map(ctx context.Context, r backend.MapRequest) ([]backend.Mapping, []backend.Unmapped, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(r.Disks) > maxMappings {
		return nil, nil, fmt.Errorf("the snapshot has %d disks, and %d are the most that are mapped: %w", len(r.Disks), maxMappings, backend.ErrUnsupported)
	}
	r, cut := fit(r)
	all, err := m.list(ctx)
	if err != nil {
		return nil, nil, err
	}
	before := map[string]bool{}
	for _, d := range ofSet(all, r.SetID) {
		before[d.name] = true
	}
	if err := hostdev.Quiet(ctx, m.run); err != nil {
		return nil, nil, err
	}
	j := &job{m: m, r: r, before: before, spans: map[string]span{}, tables: map[identity][]string{}, opened: map[string]*os.File{}, left: cut}
	defer func() {
		closeAll(j.held)
		for _, f := range j.opened {
			f.Close()
		}
	}()
	if err := j.make(ctx); err != nil {
		closeAll(j.held)
		j.held = nil
		m.undo(ctx, r.SetID, before)
		return nil, nil, err
	}
	out := make([]backend.Mapping, 0, len(j.spans))
	for path, s := range j.spans {
		if s.mapped {
			out = append(out, backend.Mapping{SetID: r.SetID, Name: path, Device: s.identity.path()})
		}
	}
	hostdev.SortMappings(out)
	return out, j.left, nil
}

// undo removes what a Map that failed has made.
func (m *Mapper) undo(ctx context.Context, setID string, keep map[string]bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	fault.Point("kpartx.undo")
	if err := m.remove(ctx, setID, keep); err != nil {
		m.log.Error("mappings that were half-made are left over; the next start removes them", zap.String("set", setID), zap.Error(err))
	}
}

// span is a volume of the request: where it is, and what shows it.
type span struct {
	identity
	disk   string // vdev
	start  int64  // bytes of the disk
	length int64
	number string // major:minor; valid where mapped
	mapped bool
}

// job is one Map.
type job struct {
	m      *Mapper
	r      backend.MapRequest
	before map[string]bool     // names of mappings that are there already
	held   []*os.File          // loop devices that no front holds yet
	opened map[string]*os.File // disks, by path, to look for labels
	spans  map[string]span     // by path in the set
	tables map[identity][]string
	left   []backend.Unmapped
}

func (j *job) leave(name string, err error) {
	j.left = append(j.left, backend.Unmapped{Name: name, Err: err})
}

func (j *job) make(ctx context.Context) error {
	if err := j.fronts(ctx); err != nil {
		return err
	}
	var own []identity
	for _, d := range j.r.Disks {
		more, err := j.partitions(ctx, d)
		if err != nil {
			return fmt.Errorf("disk %s: %w", d.VDev, err)
		}
		own = append(own, more...)
	}
	fault.Point("kpartx.tables")
	if err := j.create(ctx, own); err != nil {
		return err
	}
	if err := j.settle(); err != nil {
		return err
	}
	volumes, err := j.volumes()
	if err != nil {
		return err
	}
	fault.Point("kpartx.volumes")
	if err := j.create(ctx, volumes); err != nil {
		return err
	}
	if err := j.settle(); err != nil {
		return err
	}
	return j.verify(ctx)
}

// plan notes a mapping that is to be: its place and its table.
func (j *job) plan(path string, s span, table []string) {
	j.spans[path] = s
	j.tables[s.identity] = table
}

// fronts makes the devices of whole disks.
func (j *job) fronts(ctx context.Context) error {
	var missing []identity
	for _, d := range j.r.Disks {
		id, err := newIdentity(j.r.SetID, d.VDev, j.mustHide(d, 0, d.SizeBytes))
		if err != nil {
			return err
		}
		if d.SizeBytes < sectorBytes || d.SizeBytes/sectorBytes > maxSectors {
			return fmt.Errorf("disk %s has %d bytes: %w", d.VDev, d.SizeBytes, backend.ErrUnsupported)
		}
		s := span{identity: id, disk: d.VDev, length: d.SizeBytes / sectorBytes * sectorBytes}
		if j.before[id.name] {
			j.plan(d.VDev, s, nil)
			continue
		}
		table, err := j.diskTable(d.Path, s.length)
		if err != nil {
			return fmt.Errorf("disk %s: %w", d.VDev, err)
		}
		j.plan(d.VDev, s, table)
		missing = append(missing, id)
	}
	fault.Point("kpartx.front")
	if err := j.create(ctx, missing); err != nil {
		return err
	}
	return j.settle()
}

// diskTable is the table of a front: over the block device, or over loop devices of the file.
func (j *job) diskTable(path string, length int64) ([]string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, diskFailure(path, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		return []string{linear(0, length/sectorBytes, place{device: number(uint64(st.Rdev))})}, nil
	case unix.S_IFREG:
		fault.Point("kpartx.loop")
		held, table, err := attach(path, length)
		j.held = append(j.held, held...)
		return table, err
	}
	return nil, fmt.Errorf("%s is neither a block device nor a file: %w", path, backend.ErrUnsupported)
}

// create makes devices of our own, in this order.
func (j *job) create(ctx context.Context, ids []identity) error {
	var batch []string
	size := 0
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		_, err := j.m.tool(ctx, "dmsetup", "create", "--readonly", "--concise", strings.Join(batch, ";"))
		batch, size = nil, 0
		return failure(err)
	}
	for _, id := range ids {
		line := concise(id, j.tables[id])
		if size+len(line) > maxArgument {
			if err := flush(); err != nil {
				return err
			}
		}
		batch = append(batch, line)
		size += len(line) + 1
	}
	return flush()
}

// tool runs a program with a deadline of its own.
func (m *Mapper) tool(ctx context.Context, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	return m.run.Run(ctx, name, args...)
}

// settle waits for the nodes of what is planned, which is made by now, and looks at their numbers.
func (j *job) settle() error {
	end := time.Now().Add(nodeWait)
	for path, s := range j.spans {
		if s.mapped {
			continue
		}
		for {
			rdev, err := hostdev.Rdev(s.identity.path())
			if err == nil {
				s.number, s.mapped = number(rdev), true
				j.spans[path] = s
				break
			}
			if !errors.Is(err, backend.ErrNotExist) || time.Now().After(end) {
				return fmt.Errorf("the device of %s does not appear (udev may be stuck): %w", path, err)
			}
			time.Sleep(nodePoll)
		}
	}
	return nil
}

// volumes plans the guest's volumes.
func (j *job) volumes() ([]identity, error) {
	var missing []identity
	for _, v := range j.r.Volumes {
		id, err := newIdentity(j.r.SetID, v.Name, j.mustHideVolume(v))
		if err != nil {
			j.leave(v.Name, err)
			continue
		}
		table, err := volumeTable(v, j.find)
		if err == nil && len(concise(id, table)) > maxArgument {
			err = backend.Because(backend.ErrUnsupported, "%s: its table is too long for dmsetup", v.Name)
		}
		if err != nil {
			j.leave(v.Name, err)
			continue
		}
		if _, taken := j.spans[v.Name]; taken {
			return nil, fmt.Errorf("two volumes of the snapshot are called %s: %w", v.Name, backend.ErrInvalid)
		}
		j.plan(v.Name, span{identity: id, length: v.SizeBytes}, table)
		if !j.before[id.name] {
			missing = append(missing, id)
		}
	}
	return missing, nil
}

// find says where the bytes of a disk or a partition begin: on its own device or, where it has none, on the
// disk's.
func (j *job) find(member string) (place, int64, bool) {
	if s, ok := j.spans[member]; ok && s.mapped && s.disk != "" {
		return place{device: s.number, block: blockSectors(s.number)}, s.length / sectorBytes, true
	}
	vdev, name, _ := strings.Cut(member, "/")
	for _, d := range j.r.Disks {
		if d.VDev != vdev {
			continue
		}
		for _, p := range d.Parts {
			if p.Name == name && inDisk(p, d) {
				front := j.spans[vdev].number
				return place{front, p.Start / sectorBytes, blockSectors(front)}, p.Length / sectorBytes, true
			}
		}
	}
	return place{}, 0, false
}

// verify compares what is on the host with what was planned.
func (j *job) verify(ctx context.Context) error {
	fault.Point("kpartx.verify")
	got, err := j.m.tables(ctx)
	if err != nil {
		return err
	}
	for path, s := range j.spans {
		want := j.tables[s.identity]
		if want == nil { // a front that was there
			want = got[s.name][:min(len(got[s.name]), 2)]
		}
		if len(want) == 0 || !slices.Equal(got[s.name], want) {
			return fmt.Errorf("the mapping of %s is %q, and should be %q: write 0 to mapped, and 1 again: %w", path, got[s.name], want, backend.ErrIO)
		}
		if !isReadOnly(s.number) {
			return fmt.Errorf("the mapping of %s can be written to, which must not be: %w", path, backend.ErrIO)
		}
	}
	return nil
}

var diskWords = syserr.Words{Hints: map[unix.Errno]string{
	unix.EACCES: "run domfs as root", unix.EPERM: "run domfs as root",
	unix.ENODEV: "load the kernel's module dm-mod",
	unix.ENXIO:  "load the kernel's module dm-mod",
}}

func diskFailure(path string, err error) error { return diskWords.Failed("open", path, err) }
