package kpartx

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"domfs/backend"
	"domfs/backend/fault"

	"go.uber.org/zap"
)

// inDisk tells whether a partition is whole sectors within its disk.
func inDisk(p backend.MapPart, d backend.MapDisk) bool {
	return p.Start >= 0 && p.Length > 0 && p.Start%sectorBytes == 0 && p.Length%sectorBytes == 0 &&
		p.Start <= d.SizeBytes && p.Length <= d.SizeBytes-p.Start
}

// topNumber is the number of a partition of the disk itself, 0 for one in a partition.
func topNumber(p backend.MapPart) int {
	n, err := strconv.Atoi(strings.TrimPrefix(p.Name, "p"))
	if err != nil || n < 1 || "p"+strconv.Itoa(n) != p.Name {
		return 0
	}
	return n
}

// partitions maps those partitions of a disk that kpartx is to map, and returns the others, planned: they
// are to be made by us.
func (j *job) partitions(ctx context.Context, d backend.MapDisk) (own []identity, err error) {
	front := j.spans[d.VDev]
	block := blockSectors(front.number)
	var top []backend.MapPart
	for _, p := range d.Parts {
		path := d.VDev + "/" + p.Name
		switch {
		case !inDisk(p, d):
			j.leave(path, backend.Because(backend.ErrUnsupported, "%s: it is not whole sectors within its disk", path))
		case !(place{front.number, p.Start / sectorBytes, block}).holds(p.Length / sectorBytes):
			j.leave(path, backend.Because(backend.ErrUnsupported, "%s: it is not whole blocks of the disk, which has %d bytes in one", path, block*sectorBytes))
		case topNumber(p) > 0:
			top = append(top, p)
		default:
			own = j.planPart(own, d, p)
		}
	}
	if len(top) == 0 {
		return own, nil // and kpartx is not asked what it might find where the tree shows nothing
	}
	// What kpartx makes of a guest's partition table is the guest's to say: where that is nothing, the partitions are
	// made by us.
	var found map[int]slice
	out, err := j.m.tool(ctx, "kpartx", "-l", "-p", partDelimiter, front.path())
	if err == nil {
		found, err = parseList(string(out), front.identity)
	}
	switch {
	case ctx.Err() != nil:
		return nil, failure(err)
	case err != nil:
		j.m.log.Warn("kpartx cannot list a disk's partitions: they are mapped without it", zap.String("disk", d.VDev), zap.Error(err))
		return j.planPart(own, d, top...), nil
	}
	plan, err := j.judge(d, top, found)
	if err != nil {
		return nil, err
	}
	if !plan.byKpartx {
		return j.planPart(own, d, plan.agreed...), nil
	}
	// What LVM must not see is there before kpartx begins.
	hidden := j.planPart(nil, d, plan.hidden...)
	fault.Point("kpartx.hidden")
	if err := j.create(ctx, hidden); err != nil {
		return nil, err
	}
	return own, j.add(ctx, d, plan)
}

// planPart plans partitions as tables of ours over the front, and returns those that are to be made.
func (j *job) planPart(missing []identity, d backend.MapDisk, parts ...backend.MapPart) []identity {
	front := j.spans[d.VDev]
	for _, p := range parts {
		path := d.VDev + "/" + p.Name
		id, err := newIdentity(j.r.SetID, path, j.mustHide(d, p.Start, p.Length))
		if err != nil {
			j.leave(path, err)
			continue
		}
		j.plan(path, span{identity: id, disk: d.VDev, start: p.Start, length: p.Length},
			[]string{linear(0, p.Length/sectorBytes, place{device: front.number, sector: p.Start / sectorBytes})})
		if !j.before[id.name] {
			missing = append(missing, id)
		}
	}
	return missing
}

// verdict is how a disk's partitions are mapped.
type verdict struct {
	agreed   []backend.MapPart // by us and by kpartx
	hidden   []backend.MapPart // of those, what LVM could take for a physical volume
	byKpartx bool              // whether kpartx -a maps what is agreed and not hidden
}

// judge compares what kpartx would map with what the tree shows.
func (j *job) judge(d backend.MapDisk, top []backend.MapPart, found map[int]slice) (verdict, error) {
	v := verdict{byKpartx: true}
	front := j.spans[d.VDev]
	seen := 0
	for _, p := range top {
		path, n := d.VDev+"/"+p.Name, topNumber(p)
		s, ok := found[n]
		switch {
		case !ok:
			j.leave(path, backend.Because(backend.ErrUnsupported, "%s: kpartx does not find it", path))
			continue
		case s.start != p.Start || s.length != p.Length:
			j.leave(path, backend.Because(backend.ErrUnsupported, "%s: kpartx takes it for %d bytes at %d, and it is %d at %d", path, s.length, s.start, p.Length, p.Start))
			continue
		}
		seen++
		v.agreed = append(v.agreed, p)
		label, err := j.hasLabel(d, p.Start, p.Length)
		if err != nil {
			return v, fmt.Errorf("%s: %w", path, err)
		}
		if label {
			v.hidden = append(v.hidden, p)
		}
		id, err := newIdentity(j.r.SetID, path, label)
		if err != nil || id.name != front.name+partDelimiter+strconv.Itoa(n) || label && s.logical {
			v.byKpartx = false
		}
	}
	for _, s := range found {
		if s.length > 0 {
			seen--
		}
	}
	if seen != 0 { // kpartx would map more than is agreed
		v.byKpartx = false
	}
	return v, nil
}

// add runs kpartx -a where it has something to do.
func (j *job) add(ctx context.Context, d backend.MapDisk, plan verdict) error {
	front := j.spans[d.VDev]
	missing := false
	for _, p := range plan.agreed {
		path := d.VDev + "/" + p.Name
		if _, ok := j.spans[path]; ok {
			continue // hidden
		}
		for range j.planPart(nil, d, p) {
			missing = true
		}
	}
	if !missing {
		return nil
	}
	fault.Point("kpartx.add")
	_, err := j.m.tool(ctx, "kpartx", "-a", "-r", "-s", "-p", partDelimiter, front.path())
	fault.Point("kpartx.added")
	if err == nil {
		return nil
	}
	if errors.Is(err, backend.ErrTimeout) || len(plan.hidden) == 0 {
		return failure(err)
	}
	// It fails, too, as it finds the hidden ones in use. Whether it did the rest is seen by what is there.
	all, listErr := j.m.list(ctx)
	if listErr != nil {
		return listErr
	}
	there := map[string]bool{}
	for _, dev := range all {
		there[dev.name] = true
	}
	for _, p := range plan.agreed {
		if s := j.spans[d.VDev+"/"+p.Name]; s.identity != (identity{}) && !there[s.name] {
			return failure(err)
		}
	}
	return nil
}
