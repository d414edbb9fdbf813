package blkid

import "domfs/backend"

const (
	minSwapBytes = 10 * 4096
	// tuxOnIce stands at the start of a swap area that holds an image of TuxOnIce's.
	tuxOnIce = "\xed\xc3\x02\xe9\x98\x56\xe5\x0c"
)

// swapPages are the sizes of page that a swap area's signature may be at the end of.
var swapPages = []int64{4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10}

// probeSwap reads the header of a swap area (include/linux/swap.h).
func probeSwap(r *reader) (backend.Content, bool) {
	if r.has(0, tuxOnIce) {
		return backend.Content{}, false
	}
	for _, page := range swapPages {
		switch {
		case r.has(page-10, "SWAP-SPACE"): // version 0 has no header
			return backend.Content{}, true
		case r.has(page-10, "SWAPSPACE2"):
			b := r.at(1024, 512)
			if b == nil || le.Uint32(b) != 1 && be.Uint32(b) != 1 || le.Uint32(b[4:]) == 0 {
				return backend.Content{}, false
			}
			return swapHeader(b), true
		}
	}
	return backend.Content{}, false
}

// swapHeader reads label and UUID, if what follows them is as empty as it should be.
func swapHeader(b []byte) backend.Content {
	if !isZero(b[172:180]) {
		return backend.Content{}
	}
	return backend.Content{Label: label(b[28:44]), UUID: uuid(b[12:28])}
}

// probeSuspend looks for the image of a hibernated system in a swap area.
func probeSuspend(r *reader) (backend.Content, bool) {
	found := r.has(0, tuxOnIce)
	for _, page := range swapPages {
		found = found || r.has(page-10, "S1SUSPEND") || r.has(page-10, "S2SUSPEND") ||
			r.has(page-10, "ULSUSPEND") || r.has(page-10, "LINHIB0001")
	}
	b := r.at(1024, 512)
	if !found || b == nil {
		return backend.Content{}, false
	}
	return swapHeader(b), true
}
