package lvm

import (
	"errors"
	"math"
	"testing"

	"domfs/backend"
)

func TestParsePolicy(t *testing.T) {
	for text, want := range map[string]SizePolicy{
		"": {percent: 20}, "20%": {percent: 20}, "1%": {percent: 1}, "100%": {percent: 100}, " 35 % ": {percent: 35},
		"10G": {bytes: 10 << 30}, "10GiB": {bytes: 10 << 30}, "1.5t": {bytes: 3 << 39}, "512M": {bytes: 512 << 20}, "4096": {bytes: 4096}, "8191P": {bytes: 8191 << 50},
	} {
		got, err := ParsePolicy(text)
		if err != nil || got != want {
			t.Errorf("ParsePolicy(%q) = %+v, %v, want %+v", text, got, err, want)
			continue
		}
		if again, err := ParsePolicy(got.String()); err != nil || again != got {
			t.Errorf("%q is written as %q, which is %+v, %v", text, got, again, err)
		}
	}
	for _, text := range []string{"0%", "101%", "-1%", "20.5%", "%", "0", "x", "10X", "-1G", "+1G", "8192P", "1.5", ".5G", "1.G", "20 percent", "99999999999999999999%", "99999999999999999999999999999999999G"} {
		if got, err := ParsePolicy(text); !errors.Is(err, backend.ErrInvalid) {
			t.Errorf("ParsePolicy(%q) = %+v, %v, want ErrInvalid", text, got, err)
		}
	}
}

func TestCOWBytes_FollowsThePolicy(t *testing.T) {
	const mib, gib, extent = 1 << 20, 1 << 30, 4 << 20
	for _, test := range []struct {
		policy       string
		origin, want int64
	}{
		{"20%", 100 * gib, 20 * gib},
		{"20%", 2 * gib, 412 * mib},
		{"20%", gib, 256 * mib},       // the floor
		{"20%", 100 * mib, 104 * mib}, // all that it can need is less
		{"20%", 4 * mib, 8 * mib},
		{"1%", 100 * gib, gib},
		{"100%", 100 * mib, 104 * mib},
		{"100%", 400 * mib, 404 * mib},
		{"10G", 100 * gib, 10 * gib},
		{"10G", 100 * mib, 104 * mib},
		{"1", 100 * gib, extent}, // an admin's word has no floor
		{"5M", 100 * gib, 8 * mib},
	} {
		p, err := ParsePolicy(test.policy)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.cowBytes(test.origin, defaultChunkBytes, extent); got != test.want {
			t.Errorf("%s of %s is %s, want %s", test.policy, sizeText(test.origin), sizeText(got), sizeText(test.want))
		}
	}
}

func TestCOWBytes_NeverOverflows(t *testing.T) {
	for _, origin := range []int64{0, 1, math.MaxInt64 / 2, math.MaxInt64 - 1, math.MaxInt64} {
		for _, chunk := range []int64{0, 1, 4096, 512 << 10, math.MaxInt64} {
			for _, extent := range []int64{0, 1, 1 << 10, 3 << 20, 16 << 30} {
				for _, text := range []string{"1%", "99%", "100%", "1", "8191P"} {
					p, _ := ParsePolicy(text)
					if got := p.cowBytes(origin, chunk, extent); got < 0 || extent > 1 && got%extent != 0 {
						t.Errorf("%s of %d, chunks of %d, extents of %d: %d", text, origin, chunk, extent, got)
					}
				}
			}
		}
	}
}

func TestRoundGrowth_RoundsWhatIsAdded(t *testing.T) {
	const mib = 1 << 20
	for _, test := range []struct{ now, size, unit, want int64 }{
		{16 * mib, 16*mib + 1, 4 * mib, 20 * mib},
		{16 * mib, 20 * mib, 4 * mib, 20 * mib},
		{24 * mib, 25 * mib, 12 * mib, 36 * mib},
		{20 * mib, 21 * mib, 12 * mib, 32 * mib}, // another segment was linear
		{20 * mib, 19 * mib, 12 * mib, 20 * mib},
		{16 * mib, 13 * mib, 4 * mib, 16 * mib},
		{16 * mib, 12 * mib, 4 * mib, 12 * mib},
		{16 * mib, 0, 4 * mib, 0},
		{16 * mib, -5, 4 * mib, 0},
		{16 * mib, math.MaxInt64, 4 * mib, math.MaxInt64 / (4 * mib) * (4 * mib)},
	} {
		got := roundGrowth(test.now, test.size, test.unit)
		if got != test.want {
			t.Errorf("from %d to %d in steps of %d: %d, want %d", test.now, test.size, test.unit, got, test.want)
		}
		if again := roundGrowth(test.now, got, test.unit); again != got {
			t.Errorf("%d is rounded to %d", got, again)
		}
	}
}
