package lvm

import (
	"math"
	"strconv"
	"strings"
)

const sectorBytes = 512

// cowStatus is what the target of a thick snapshot says (Documentation/admin-guide/device-mapper/snapshot.rst).
type cowStatus struct {
	// fault is why it is no snapshot any more, "" while it is one.
	fault     string
	known     bool // the sizes are valid
	usedBytes int64
	// totalBytes is the space for copies on write; usedBytes includes metadataBytes.
	totalBytes, metadataBytes int64
}

// cow is the state of a thick snapshot; false while that is not active.
func (d *devices) cow(l *lv) (cowStatus, bool) {
	v := d.of(l)
	if v == nil {
		return cowStatus{}, false
	}
	return v.cow()
}

// cow is the state of the snapshot that a device is; false if it is none.
func (v *device) cow() (cowStatus, bool) {
	for _, t := range v.Targets {
		if t.Type == segSnapshot || t.Type == "snapshot-merge" {
			return parseCOW(t.Status), true
		}
	}
	return cowStatus{}, false
}

func parseCOW(params string) cowStatus {
	switch text := strings.TrimSpace(params); text {
	case "Invalid":
		return cowStatus{fault: "it is invalid: more was overwritten than its reserve held, or its space could not be read or written"}
	case "Overflow":
		return cowStatus{fault: "it overflowed: its reserve is full, and writes to it were lost"}
	case "Merge failed":
		return cowStatus{fault: "its merge into the origin failed"}
	default:
		var c cowStatus
		sizes, metadata, _ := strings.Cut(text, " ")
		used, total, ok := parseRatio(sizes)
		meta, err := strconv.ParseInt(strings.TrimSpace(metadata), 10, 64)
		if err != nil || meta < 0 { // older kernels do not say it
			meta = 0
		}
		// "Unknown" is the answer of kinds of stores that count nothing.
		if ok && used <= math.MaxInt64/sectorBytes && total <= math.MaxInt64/sectorBytes {
			c = cowStatus{known: true, usedBytes: used * sectorBytes, totalBytes: total * sectorBytes, metadataBytes: min(meta, used) * sectorBytes}
		}
		return c
	}
}

// percent is how full the reserve is.
func (c cowStatus) percent() float64 {
	if c.fault != "" {
		return 100
	}
	if !c.known || c.totalBytes == 0 {
		return 0
	}
	return float64(c.usedBytes) / float64(c.totalBytes) * 100
}

// thinStatus is what the target of a thin volume says.
type thinStatus struct {
	failed      bool
	mappedBytes int64 // those that it shares with others included
}

// thin is the state of a thin volume; false while that is not active. That of one with snapshots or an external
// origin may be a layer below.
func (d *devices) thin(l *lv) (thinStatus, bool) {
	for _, v := range []*device{d.of(l), d.layer(l, "real")} {
		if v == nil {
			continue
		}
		for _, t := range v.Targets {
			if t.Type == segThin {
				return parseThin(t.Status), true
			}
		}
	}
	return thinStatus{}, false
}

func parseThin(params string) thinStatus {
	first, _, _ := strings.Cut(strings.TrimSpace(params), " ")
	if first == "Fail" || first == "Error" {
		return thinStatus{failed: true}
	}
	n, err := strconv.ParseInt(first, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/sectorBytes {
		return thinStatus{}
	}
	return thinStatus{mappedBytes: n * sectorBytes}
}

// parseRatio reads "used/total". A snapshot that is all but full may count a chunk more than it has.
func parseRatio(text string) (used, total int64, ok bool) {
	before, after, found := strings.Cut(text, "/")
	used, err1 := strconv.ParseInt(before, 10, 64)
	total, err2 := strconv.ParseInt(after, 10, 64)
	if !found || err1 != nil || err2 != nil || used < 0 || total < 0 {
		return 0, 0, false
	}
	return min(used, total), total, true
}
