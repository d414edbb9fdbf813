package lvm2

import (
	"errors"
	"fmt"
	"math"

	"domfs/backend"
)

func isRange(err error) bool { return errors.Is(err, backend.ErrRange) }

const (
	superSize       = 512
	superMagic      = 0x64526d44 // DmRd
	superV190       = 1          // FEATURE_FLAG_SUPPORTS_V190
	superReshaping  = 1          // SB_FLAG_RESHAPE_ACTIVE
	superMaxDevices = 253
	allSectors      = math.MaxUint64 // MaxSector: in sync to the end
	recentEvents    = 1              // md does not write each superblock at each event
)

// super is dm-raid's superblock, the first sector of a leg's metadata volume
// (struct dm_raid_superblock in drivers/md/dm-raid.c).
type super struct {
	devices, position uint32
	events            uint64
	failed            [4]uint64 // a bit for each device
	recovered         uint64    // sectors of this leg that are rebuilt
	resynced          uint64    // sectors of the array whose legs or parity were made to agree
	level, layout     uint32
	stripeSectors     uint32
	dataOffset        uint64 // sectors of the leg before its data
}

// readSuper reads a superblock: ok is false where there is none yet.
func readSuper(d backend.Device) (s super, ok bool, err error) {
	b, err := readFull(d, 0, superSize)
	if err != nil {
		return super{}, false, err
	}
	if le.Uint32(b) != superMagic {
		return super{}, false, nil
	}
	features := le.Uint32(b[4:])
	s = super{
		devices: le.Uint32(b[8:]), position: le.Uint32(b[12:]), events: le.Uint64(b[16:]),
		recovered: le.Uint64(b[32:]), resynced: le.Uint64(b[40:]),
		level: le.Uint32(b[48:]), layout: le.Uint32(b[52:]), stripeSectors: le.Uint32(b[56:]),
	}
	s.failed[0] = le.Uint64(b[24:])
	if features == 0 {
		return s, true, nil
	}
	if features != superV190 {
		return super{}, false, fmt.Errorf("a raid superblock has unknown features %#x: %w", features, backend.ErrUnsupported)
	}
	// Members of version 1.9.0: flags 60, reshape_position 64, new_* and delta_disks 72, array_sectors 88,
	// data_offset 96, new_data_offset 104, sectors 112, extended_failed_devices 120, incompat_features 144.
	if le.Uint32(b[60:])&superReshaping != 0 || le.Uint64(b[64:]) != allSectors {
		return super{}, false, fmt.Errorf("the guest was changing the raid's shape: %w", backend.ErrUnsupported)
	}
	if f := le.Uint32(b[144:]); f != 0 {
		return super{}, false, fmt.Errorf("a raid superblock has unknown features %#x: %w", f, backend.ErrUnsupported)
	}
	s.dataOffset = le.Uint64(b[96:])
	for i := range 3 {
		s.failed[i+1] = le.Uint64(b[120+8*i:])
	}
	return s, true, nil
}

// raidLeg is a leg of a raid, before and after its state is known.
type raidLeg struct {
	name    string
	data    backend.Device // nil: missing
	meta    backend.Device // nil: missing, or there is none
	hasMeta bool           // the metadata names one
	rebuild bool           // the group's metadata says that it is to be rebuilt
	why     string         // why it is not used

	synced int64 // bytes from its beginning that are in sync, 0 where it is not used
}

// raidShape is what superblocks must agree with.
type raidShape struct {
	levels      []uint32
	layout      func(uint32) bool
	stripeBytes int64
}

// assess finds out which legs are in sync, as dm-raid's analyse_superblocks does: the superblock with the
// most events says which legs failed, each leg's own how far it was rebuilt. It differs from the kernel in
// one way: a leg whose superblock is older than the newest is not used, since a read-only reader cannot rebuild it.
// resynced tells whether all legs, or data and parity, were made to agree.
func assess(legs []raidLeg, shape raidShape) (resynced bool, err error) {
	supers := make([]super, len(legs))
	have := make([]bool, len(legs))
	newest, any, anyMeta := super{}, false, false
	for i := range legs {
		l := &legs[i]
		anyMeta = anyMeta || l.hasMeta
		if l.data == nil {
			continue
		}
		if l.meta == nil {
			continue
		}
		s, ok, err := readSuper(l.meta)
		if err != nil {
			if errors.Is(err, backend.ErrUnsupported) {
				return false, err
			}
			l.why = fmt.Sprintf("its superblock cannot be read: %v", err)
			l.meta = nil
			continue
		}
		if !ok {
			continue
		}
		supers[i], have[i] = s, true
		if !any || s.events > newest.events {
			newest, any = s, true
		}
	}
	if any {
		if err := shape.check(newest, len(legs)); err != nil {
			return false, err
		}
	}
	for i := range legs {
		l := &legs[i]
		switch s := supers[i]; {
		case l.data == nil:
			if l.why == "" {
				l.why = "it is missing"
			}
		case l.rebuild:
			l.why = "it is to be rebuilt"
		case l.hasMeta && l.meta == nil:
			if l.why == "" {
				l.why = "its superblock is missing"
			}
		case !any:
			// Never active, or without superblocks at all: the kernel takes all legs as in sync.
			l.synced = l.data.Size()
		case !have[i]:
			l.why = "it has no superblock, the others have"
		case newest.failed[s.position/64%4]>>(s.position%64)&1 != 0 || newest.failed[i/64%4]>>(i%64)&1 != 0:
			l.why = "it failed in the guest"
		case s.events+recentEvents < newest.events:
			l.why = "it is older than the others"
		case s.dataOffset != 0:
			return false, fmt.Errorf("leg %s begins after a reshape's space of %d sectors: %w", l.name, s.dataOffset, backend.ErrUnsupported)
		case s.recovered > uint64(l.data.Size())/sectorBytes:
			l.synced = l.data.Size()
		default:
			l.synced = int64(s.recovered) * sectorBytes
			if l.synced == 0 {
				l.why = "it was not rebuilt yet"
			}
		}
	}
	return !any && !anyMeta || any && newest.resynced == allSectors, nil
}

// check compares a superblock with what the group's metadata says.
func (r raidShape) check(s super, legs int) error {
	if s.devices != uint32(legs) || s.devices > superMaxDevices {
		return fmt.Errorf("the raid's superblock is for %d legs, the metadata has %d; the guest was changing it: %w", s.devices, legs, backend.ErrUnsupported)
	}
	known := false
	for _, l := range r.levels {
		known = known || s.level == l
	}
	if !known || r.layout != nil && !r.layout(s.layout) || r.stripeBytes > 0 && int64(s.stripeSectors)*sectorBytes != r.stripeBytes {
		return fmt.Errorf("the raid's superblock (level %d, layout %#x, stripes of %d sectors) is not what the metadata says; the guest was changing it: %w",
			s.level, s.layout, s.stripeSectors, backend.ErrUnsupported)
	}
	return nil
}

const (
	logMagic      = 0x4d695272 // MiRr
	logBits       = 1024       // byte of the first bit
	logHeaderSize = 16
)

// mirrorLog is the disk log of dm-mirror (struct log_header in drivers/md/dm-log.c): a bit for each
// region that is the same on all legs. They are read as they are needed: the logs of many large mirrors would take
// much memory.
type mirrorLog struct {
	region  int64
	dev     backend.Device
	regions int64 // that it has bits for
}

// readLog reads the log of a mirror of size bytes.
func readLog(d backend.Device, region, size int64) (*mirrorLog, error) {
	if region <= 0 {
		return nil, fmt.Errorf("regions of %d bytes: %w", region, backend.ErrCorrupt)
	}
	h, err := readFull(d, 0, logHeaderSize)
	if err != nil {
		return nil, err
	}
	if m, v := le.Uint32(h), le.Uint32(h[4:]); m != logMagic || v != 1 && v != 2 {
		return nil, fmt.Errorf("it has no header: %w", backend.ErrCorrupt)
	}
	regions := (size-1)/region + 1
	if written := le.Uint64(h[8:]); written < uint64(regions) {
		regions = int64(written) // the mirror has grown: what is new is not in sync
	}
	if bytes := (regions + 7) / 8; d.Size() < logBits || bytes > d.Size()-logBits {
		return nil, fmt.Errorf("its %d regions are more than a device of %d bytes has bits for: %w", regions, d.Size(), backend.ErrCorrupt)
	}
	return &mirrorLog{region: region, dev: d, regions: regions}, nil
}

// synced is how many bytes from off are in sync, 0 if the one at off is not.
func (l *mirrorLog) synced(off int64) (int64, error) {
	first := off / l.region
	end := min(l.regions, first+64)
	if first >= end {
		return 0, nil
	}
	var bits [9]byte
	b := bits[:(end-1)/8-first/8+1]
	if err := readAll(l.dev, b, logBits+first/8); err != nil {
		return 0, fmt.Errorf("the mirror's log: %w", err)
	}
	r := first
	for r < end && b[r/8-first/8]>>(r%8)&1 != 0 {
		r++
	}
	if r == first {
		return 0, nil
	}
	return r*l.region - off, nil
}
