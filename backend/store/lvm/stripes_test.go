package lvm

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestStripeArgs_GoOnAsTheLastSegmentWhereOthersDiffer(t *testing.T) {
	for _, test := range []struct {
		segments string // stripes:stripe size:start
		want     []string
	}{
		{"1:0:0", nil},
		{"1:0:0 1:0:8", nil},
		{"2:65536:0 2:65536:8", nil},
		{"2:65536:0 1:0:8", []string{"--stripes", "1"}},
		{"1:0:8 2:65536:0", []string{"--stripes", "1"}}, // in whatever order
		{"1:0:0 2:16384:8", []string{"--stripes", "2", "--stripesize", "16384b"}},
		{"2:65536:0 2:16384:8", []string{"--stripes", "2", "--stripesize", "16384b"}},
		{"3:65536:0 1:0:4 3:65536:8", []string{"--stripes", "3", "--stripesize", "65536b"}},
	} {
		var rows []string
		for _, s := range strings.Fields(test.segments) {
			f := strings.Split(s, ":")
			rows = append(rows, fmt.Sprintf(`{"lv_uuid":"u","segtype":"striped","stripes":%q,"stripe_size":%q,"seg_start":%q}`, f[0], f[1], f[2]))
		}
		r, err := parseReport(fmt.Appendf(nil, `{"report":[{"vg":[{"vg_name":"g"}],"lv":[{"lv_name":"l","lv_uuid":"u"}],"seg":[%s]}]}`, strings.Join(rows, ",")))
		if err != nil {
			t.Fatal(err)
		}
		if got := r.lv("g", "l").stripeArgs(); !slices.Equal(got, test.want) {
			t.Errorf("segments %s: %q, want %q", test.segments, got, test.want)
		}
	}
}
