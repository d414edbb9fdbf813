package lvm

import (
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"

	"domfs/backend"
)

// DefaultSizePolicy is the space that a thick snapshot gets where nobody says otherwise.
const DefaultSizePolicy = "20%"

// minCOWBytes is the floor of a policy in percent: 20 % of a small disk are soon overwritten. It is cut
// to what the snapshot can need at all.
const minCOWBytes = 256 << 20

// A snapshot's chunk where LVM is not told otherwise, and the bounds of one (lvcreate(8), --chunksize).
const (
	defaultChunkBytes = 4 << 10
	maxChunkBytes     = 512 << 10
)

// exceptionBytes is the size of a record of one chunk that was copied (the kernel's
// drivers/md/dm-snap-persistent.c, struct disk_exception).
const exceptionBytes = 16

// SizePolicy says how much space for copies on write a thick snapshot gets as it is made.
type SizePolicy struct {
	percent int64 // of the origin; 0 if bytes says it
	bytes   int64
}

// ParsePolicy reads a policy: a percentage of the origin from 1% to 100%, or a size (10G, 1.5T, 512M), the
// same for all disks. 100% is what cannot overflow: the origin and LVM's own records of it. "" is the
// default. ErrInvalid otherwise.
func ParsePolicy(text string) (SizePolicy, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		text = DefaultSizePolicy
	}
	wrong := func(why string) (SizePolicy, error) {
		const most = 64
		return SizePolicy{}, backend.Because(backend.ErrInvalid, "%q %s; the space of snapshots is a percentage of the origin such as %s, or a size such as 10G", text[:min(len(text), most)], why, DefaultSizePolicy)
	}
	if digits, ok := strings.CutSuffix(text, "%"); ok {
		n, err := strconv.ParseUint(strings.TrimSpace(digits), 10, 32)
		switch {
		case err != nil:
			return wrong("is no whole percentage")
		case n == 0:
			return wrong("leaves no space for copies on write")
		case n > 100:
			return wrong("is more than a snapshot can ever use, which is 100%")
		}
		return SizePolicy{percent: int64(n)}, nil
	}
	n, ok := parseSize(text)
	switch {
	case !ok:
		return wrong("is neither a percentage nor a size")
	case n == 0:
		return wrong("leaves no space for copies on write")
	}
	return SizePolicy{bytes: n}, nil
}

// String is the policy as ParsePolicy reads it.
func (p SizePolicy) String() string {
	if p.percent != 0 {
		return fmt.Sprintf("%d%%", p.percent)
	}
	return strconv.FormatInt(p.bytes, 10)
}

// parseSize reads a decimal number of bytes, or of K, M, G, T or P (powers of 1024), with B or iB after it or not.
func parseSize(text string) (int64, bool) {
	const maxText = 32
	end := strings.LastIndexAny(text, "0123456789.") + 1
	number, unit := text[:end], strings.ToUpper(text[end:])
	shift := uint(0)
	if unit != "" && unit != "B" {
		i := strings.IndexByte("KMGTP", unit[0])
		if i < 0 || unit[1:] != "" && unit[1:] != "B" && unit[1:] != "IB" {
			return 0, false
		}
		shift = uint(10 * (i + 1))
	}
	whole, fraction, hasPoint := strings.Cut(number, ".")
	isNumber := func(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
	if len(text) > maxText || !isNumber(whole) || hasPoint && (!isNumber(fraction) || shift == 0) {
		return 0, false
	}
	n, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || n > math.MaxInt64>>shift {
		return 0, false
	}
	n <<= shift
	if hasPoint {
		f, err := strconv.ParseFloat("0."+fraction, 64)
		part := int64(f * float64(int64(1)<<shift))
		if err != nil || part > math.MaxInt64-n {
			return 0, false
		}
		n += part
	}
	return n, true
}

// cowBytes is the space that the policy gives a snapshot of an origin: whole extents, at most maxCOWBytes.
func (p SizePolicy) cowBytes(originBytes, chunkBytes, extentBytes int64) int64 {
	most := maxCOWBytes(originBytes, chunkBytes, extentBytes)
	want := p.bytes
	if p.percent != 0 {
		if p.percent >= 100 {
			return most
		}
		want = max(percentOf(originBytes, p.percent), minCOWBytes)
	}
	return min(roundUp(want, extentBytes), most)
}

// maxCOWBytes is the most that a snapshot's space can be used, in whole extents: then it cannot overflow. It
// holds a chunk for a header, all chunks of the origin, and chunks of records, each for as many chunks as it has room
// for, and the next of which is there before the last is full (drivers/md/dm-snap-persistent.c). LVM gives as much for
// lvcreate -l100%ORIGIN, and cuts whatever is more.
func maxCOWBytes(originBytes, chunkBytes, extentBytes int64) int64 {
	if chunkBytes < exceptionBytes || chunkBytes > maxChunkBytes {
		chunkBytes = defaultChunkBytes
	}
	data := divideUp(originBytes, chunkBytes)
	records := data/(chunkBytes/exceptionBytes) + 1
	chunks := 1 + data + records
	if chunks > math.MaxInt64/chunkBytes {
		return roundUp(math.MaxInt64, extentBytes)
	}
	return roundUp(chunks*chunkBytes, extentBytes)
}

// percentOf is percent % of n, rounded up; percent is at most 100.
func percentOf(n, percent int64) int64 {
	high, low := bits.Mul64(uint64(max(n, 0)), uint64(percent))
	low, carry := bits.Add64(low, 99, 0)
	q, _ := bits.Div64(high+carry, low, 100)
	return int64(q)
}

func divideUp(n, by int64) int64 {
	if n <= 0 {
		return 0
	}
	return (n-1)/by + 1
}

// roundUp rounds n up to a multiple of unit; to the largest one there is where it would be too large.
func roundUp(n, unit int64) int64 {
	if unit <= 1 {
		return max(n, 0)
	}
	units := divideUp(n, unit)
	return min(units, math.MaxInt64/unit) * unit
}
