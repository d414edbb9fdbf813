package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// result is what was measured of a row, run by run.
type result struct {
	row    row
	base   string               // the contender that domfs is compared with
	values map[string][]float64 // by contender
}

// unit is how a value is shown.
type unit int

const (
	automatic unit = iota // seconds, in s or ms
	microseconds
	mebibytes
)

func (u unit) show(v float64) string {
	switch {
	case u == microseconds:
		return fmt.Sprintf("%.1f µs", v*1e6)
	case u == mebibytes:
		return fmt.Sprintf("%.0f MiB", v/(1<<20))
	case v < 1:
		return fmt.Sprintf("%.0f ms", v*1e3)
	}
	return fmt.Sprintf("%.2f s", v)
}

// target is what domfs is to reach.
type target struct {
	kind  targetKind
	limit float64
}

type targetKind int

const (
	timeRatio  targetKind = iota // domfs' time by the other's, at most
	speedRatio                   // domfs' speed by the other's, at least
	absolute                     // domfs' own value, at most; seconds or MiB
)

func atMost(times float64) target       { return target{timeRatio, times} }
func speedAtLeast(times float64) target { return target{speedRatio, times} }
func below(value float64) target        { return target{absolute, value} }

func (t target) String() string {
	switch t.kind {
	case timeRatio:
		return fmt.Sprintf("≤ %g × the time", t.limit)
	case speedRatio:
		return fmt.Sprintf("≥ %g × the speed", t.limit)
	}
	if t.limit < 1 {
		return fmt.Sprintf("≤ %g ms", t.limit*1e3)
	}
	return fmt.Sprintf("≤ %g MiB", t.limit)
}

// ratios compares contender with the base run by run: what slows the machine for a
// while slows both.
func (r *result) ratios(contender string) []float64 {
	base, other := r.values[r.base], r.values[contender]
	var out []float64
	for i := range min(len(base), len(other)) {
		if r.row.target.kind == speedRatio {
			out = append(out, base[i]/other[i])
		} else {
			out = append(out, other[i]/base[i])
		}
	}
	return out
}

// reached compares the median with the target.
func (r *result) reached() bool {
	switch t := r.row.target; t.kind {
	case timeRatio:
		return median(r.ratios("domfs")) <= t.limit
	case speedRatio:
		return median(r.ratios("domfs")) >= t.limit
	default:
		value := median(r.values["domfs"])
		if r.row.unit == mebibytes {
			value /= 1 << 20
		}
		return value <= t.limit
	}
}

// median of values; with an even number of them the mean of the two in the middle.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n == 0 {
		return 0
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// table prints the results, by what domfs is compared with: the median of each contender, and the median of
// the ratios with the lowest and the highest; then the ratio of those that were measured once.
func (b *bench) table(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	defer w.Flush()
	base := ""
	for _, r := range b.results {
		if r.base != base {
			base = r.base
			fmt.Fprintf(w, "row\t%s\tdomfs\tratio\tof the runs\ttarget\t\tanother's ratio\n", base)
		}
		ratio, spread := "-", "-"
		if ratios := r.ratios("domfs"); len(ratios) > 0 {
			ratio = fmt.Sprintf("%.2f", median(ratios))
			spread = fmt.Sprintf("%.2f–%.2f", slices.Min(ratios), slices.Max(ratios))
		}
		verdict := "-"
		if len(r.values["domfs"]) > 0 {
			verdict = map[bool]string{true: "ok", false: "miss"}[r.reached()]
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%v\t%s\t%s\n", r.row.name, r.shown(base), r.shown("domfs"), ratio, spread, r.row.target, verdict, r.others())
	}
}

// others are the ratios of those that are neither domfs nor what that is compared with.
func (r *result) others() string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(r.values)) {
		if ratios := r.ratios(name); name != r.base && name != "domfs" && len(ratios) > 0 {
			out = append(out, fmt.Sprintf("%s %.2f", name, median(ratios)))
		}
	}
	return strings.Join(out, ", ")
}

func (r *result) shown(contender string) string {
	values := r.values[contender]
	if len(values) == 0 {
		return "-"
	}
	return r.row.unit.show(median(values))
}
