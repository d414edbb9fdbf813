package kpartx

import (
	"fmt"
	"slices"
	"strings"

	"domfs/backend"
)

const (
	sectorBytes = 512
	// maxSectors keeps all sums of two in bytes within 63 bits.
	maxSectors = 1 << 52
	// Limits of one volume, and of a request.
	maxSegments = 4096
	maxStripes  = 128
	// What is beyond is left out: a guest must not be able to keep its snapshots from being mapped, or the host busy
	// for minutes. Each mapping is an event of udev's that is waited for.
	maxMappings = 512
)

// place is where a run of bytes begins: a device, and the sector of it.
type place struct {
	device string // major:minor
	sector int64
	block  int64 // sectors of the device's logical block, 0 where it is one
}

// holds tells whether device-mapper takes a run of sectors that begins there: whole logical blocks.
func (p place) holds(sectors int64) bool {
	return p.block <= 1 || p.sector%p.block == 0 && sectors%p.block == 0
}

// fit leaves out what is more than maxMappings: disks come first, then their partitions, then volumes.
func fit(r backend.MapRequest) (backend.MapRequest, []backend.Unmapped) {
	var left []backend.Unmapped
	room := maxMappings - len(r.Disks)
	cut := func(name string, n, kept int) {
		left = append(left, backend.Unmapped{Name: name, Err: backend.Because(backend.ErrUnsupported, "%s and what follows, %d volumes: a snapshot has devices of %d at most", name, n-kept, maxMappings)})
	}
	r.Disks = slices.Clone(r.Disks)
	for i := range r.Disks {
		d := &r.Disks[i]
		kept := max(0, min(room, len(d.Parts)))
		if kept < len(d.Parts) {
			cut(d.VDev+"/"+d.Parts[kept].Name, len(d.Parts), kept)
		}
		d.Parts = d.Parts[:kept]
		room -= kept
	}
	if kept := max(0, room); kept < len(r.Volumes) {
		cut(r.Volumes[kept].Name, len(r.Volumes), kept)
		r.Volumes = r.Volumes[:kept]
	}
	return r, left
}

func linear(at, sectors int64, to place) string {
	return fmt.Sprintf("%d %d linear %s %d", at, sectors, to.device, to.sector)
}

// volumeTable makes the table of a guest's volume. find says where a member's bytes begin, and how
// many there are.
func volumeTable(v backend.MapVolume, find func(member string) (to place, sectors int64, ok bool)) ([]string, error) {
	refuse := func(format string, args ...any) ([]string, error) {
		return nil, backend.Because(backend.ErrUnsupported, "%s: %s", v.Name, fmt.Sprintf(format, args...))
	}
	if len(v.Segments) == 0 {
		return refuse("it is neither linear nor striped, so no table of device-mapper can show it; its raw can be read")
	}
	if len(v.Segments) > maxSegments {
		return refuse("it lies in %d pieces, and %d are the most that are mapped", len(v.Segments), maxSegments)
	}
	var lines []string
	var at int64
	for _, s := range v.Segments {
		if s.Start != at*sectorBytes || s.Length <= 0 || s.Length%sectorBytes != 0 || s.Length/sectorBytes > maxSectors-at {
			return refuse("its segments do not follow each other in whole sectors")
		}
		sectors := s.Length / sectorBytes
		n := int64(len(s.Targets))
		if n == 0 || n > maxStripes {
			return refuse("a segment of it has %d stripes, and %d are the most that are mapped", n, maxStripes)
		}
		chunk := s.StripeBytes / sectorBytes
		striped := n > 1
		// The kernel wants whole chunks on each stripe.
		if striped && (chunk < 1 || s.StripeBytes%sectorBytes != 0 || chunk > sectors || sectors%(n*chunk) != 0) {
			return refuse("a segment of it has stripes of %d bytes, which device-mapper does not take", s.StripeBytes)
		}
		var places []string
		for _, t := range s.Targets {
			to, has, ok := find(t.Member)
			if !ok {
				return refuse("it lies on %s, which is not mapped", t.Member)
			}
			if t.Offset < 0 || t.Offset%sectorBytes != 0 || t.Offset/sectorBytes > has || sectors/n > has-t.Offset/sectorBytes {
				return refuse("it reaches past the end of %s", t.Member)
			}
			if to.sector += t.Offset / sectorBytes; !to.holds(sectors/n) || !to.holds(chunk) {
				return refuse("it is not whole blocks of the disk, which has %d bytes in one", to.block*sectorBytes)
			}
			places = append(places, fmt.Sprintf("%s %d", to.device, to.sector))
		}
		if striped {
			lines = append(lines, fmt.Sprintf("%d %d striped %d %d %s", at, sectors, n, chunk, strings.Join(places, " ")))
		} else {
			lines = append(lines, fmt.Sprintf("%d %d linear %s", at, sectors, places[0]))
		}
		at += sectors
	}
	if at*sectorBytes != v.SizeBytes {
		return refuse("its segments have %d bytes, and it has %d", at*sectorBytes, v.SizeBytes)
	}
	return lines, nil
}

// concise is dmsetup's one-line form of a read-only device: its name, its UUID and its table. Names and
// UUIDs of ours, and tables, have no byte in them that would have to be quoted.
func concise(d identity, table []string) string {
	return d.name + "," + d.uuid + ",,ro," + strings.Join(table, ",")
}
