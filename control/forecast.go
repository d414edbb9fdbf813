package control

import (
	"fmt"
	"math"
	"time"
)

const (
	maxSamples = 16              // that are kept of one space
	minSpan    = 2 * time.Second // of samples that a forecast is made of
	minSamples = 3               // that a forecast is made of
	minGap     = time.Second / 2 // between samples that are both kept
	levelSlack = 5               // percentage points by which a level must be left to be told anew
)

// levels are the percentages at which is told how full something is. forecastSoon is the time within
// which it is told that it will be full, and not again until that was more than forecastLater.
var levels = []float64{50, 70, 80, 90, 95}

const (
	forecastSoon  = 10 * time.Minute
	forecastLater = 20 * time.Minute
)

// sample is how much of a space was used at a time.
type sample struct {
	at   time.Duration // on the monotonic clock, since the guard began
	used float64       // bytes
}

// track is what is known of one space that fills: a snapshot's reserve, a pool's data or metadata.
type track struct {
	size    float64 // bytes
	samples []sample
	level   float64 // the highest of levels that was told or passed; 0 none
	soon    bool    // it was told that it will be full soon
}

// observe takes a sample. Where the space has become another one (it was extended), or less of it is used than
// before, the history begins anew.
func (t *track) observe(at time.Duration, used, size float64) {
	if size != t.size {
		t.level = levelOf(used, size, 0) // below that nothing is news
		if t.size == 0 {
			t.level = 0
		}
		t.size, t.soon = size, false
	}
	if n := len(t.samples); n > 0 {
		last := t.samples[n-1]
		if at <= last.at {
			return
		}
		if used < last.used {
			t.samples = t.samples[:0]
			if size > 0 && used/size*100 < t.level-levelSlack {
				t.level = levelOf(used, size, 0)
			}
		}
		if n := len(t.samples); n >= 2 && at-t.samples[n-2].at < minGap {
			t.samples = t.samples[:n-1] // readings come in swarms: the history is to reach back further
		}
	}
	if len(t.samples) == maxSamples {
		t.samples = append(t.samples[:0], t.samples[1:]...)
	}
	t.samples = append(t.samples, sample{at, used})
}

// rate is by how many bytes a second the space fills, 0 if it does not or that cannot be told yet. It is that of
// the second half of the history, once that is long enough.
func (t *track) rate() float64 {
	n := len(t.samples)
	if n < minSamples {
		return 0
	}
	if half := t.samples[n-max(n/2, minSamples):]; half[len(half)-1].at-half[0].at >= minSpan {
		return slope(half)
	}
	return slope(t.samples)
}

func slope(s []sample) float64 {
	first, last := s[0], s[len(s)-1]
	if span := last.at - first.at; span >= minSpan && last.used > first.used {
		return (last.used - first.used) / span.Seconds()
	}
	return 0
}

// until is how long it takes at the present rate until so many bytes are used; ok is false if that
// cannot be told, or is beyond all measure.
func (t *track) until(bytes float64) (d time.Duration, ok bool) {
	rate := t.rate()
	if rate <= 0 || len(t.samples) == 0 {
		return 0, false
	}
	seconds := max(bytes-t.samples[len(t.samples)-1].used, 0) / rate
	if seconds > (1000 * time.Hour).Seconds() {
		return 0, false
	}
	return time.Duration(seconds * float64(time.Second)), true
}

func (t *track) percent() float64 {
	if n := len(t.samples); n > 0 && t.size > 0 {
		return t.samples[n-1].used / t.size * 100
	}
	return 0
}

// levelOf is the highest of levels that is reached, or least if that is higher.
func levelOf(used, size, least float64) float64 {
	for _, l := range levels {
		if size > 0 && used/size*100 >= l {
			least = max(least, l)
		}
	}
	return least
}

// news tells whether there is something to tell: once for each level, and once for each time that it will be
// full soon.
func (t *track) news() bool {
	told := false
	if n := len(t.samples); n > 0 {
		if l := levelOf(t.samples[n-1].used, t.size, t.level); l > t.level {
			t.level, told = l, true
		}
	}
	d, ok := t.until(t.size)
	switch {
	case ok && d < forecastSoon:
		told = told || !t.soon
		t.soon = true
	case ok && d > forecastLater, !ok && len(t.samples) == maxSamples && slope(t.samples) == 0:
		t.soon = false
	}
	return told
}

// next is when to look again: often enough to see the next mark (a level, the threshold in
// percent, the end) come closer, and between fast and slow.
func (t *track) next(threshold float64, fast, slow time.Duration) time.Duration {
	at := t.percent()
	mark := 100.0
	for _, l := range append([]float64{threshold}, levels...) {
		if l > at {
			mark = min(mark, l)
		}
	}
	const looks = 4 // on the way there
	if d, ok := t.until(t.size * mark / 100); ok {
		return min(max(d/looks, fast), slow)
	}
	return slow
}

// forecast is a sentence's end: when it will be full.
func (t *track) forecast() string {
	d, ok := t.until(t.size)
	if !ok {
		return ""
	}
	return " and at the present rate it will be full in about " + about(d)
}

// about is a duration as one says it.
func about(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%.0f s", math.Ceil(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%.0f min", d.Minutes())
	case d < 48*time.Hour:
		return fmt.Sprintf("%.0f h", d.Hours())
	}
	return fmt.Sprintf("%.0f days", d.Hours()/24)
}
