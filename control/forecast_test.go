package control

import (
	"strings"
	"testing"
	"time"
)

// fill gives a track a sample every second: percent of 1000 bytes.
func fillTrack(t *track, from time.Duration, percents ...float64) (at time.Duration, told []float64) {
	at = from
	for _, p := range percents {
		at += time.Second
		t.observe(at, p*10, 1000)
		if t.news() {
			told = append(told, p)
		}
	}
	return at, told
}

func TestTrack_TellsEachLevelOnce(t *testing.T) {
	steps := []struct {
		what     string
		percents []float64
		want     int
	}{
		{"below all", []float64{0, 10, 49.9}, 1}, // the forecast: it fills within seconds
		{"at a level", []float64{50}, 1},
		{"still there", []float64{50, 51, 69}, 0},
		{"two at once", []float64{81}, 1},
		{"to and fro", []float64{79, 81, 79, 80.5}, 0},
		{"the last ones", []float64{90, 94, 95, 99}, 2},
		{"far below", []float64{10}, 0},
		{"again", []float64{55}, 1},
	}
	tr := &track{}
	var at time.Duration
	for _, s := range steps {
		var told []float64
		at, told = fillTrack(tr, at, s.percents...)
		if len(told) != s.want {
			t.Errorf("%s: told at %v, want %d times", s.what, told, s.want)
		}
	}
}

func TestTrack_IsSilentAboutWhatAnExtensionLeft(t *testing.T) {
	tr := &track{}
	tr.observe(time.Second, 750, 1000)
	if !tr.news() {
		t.Error("75 % are no news")
	}
	tr.observe(2*time.Second, 750, 1250)
	if tr.news() {
		t.Error("60 % after an extension are news")
	}
	tr.observe(3*time.Second, 900, 1250)
	if !tr.news() {
		t.Error("72 % after that are no news")
	}
}

func TestTrack_ForecastsFromThePresentRate(t *testing.T) {
	tr := &track{}
	at, told := fillTrack(tr, 0, 1, 1.001, 1.002, 1.003, 1.004, 1.005, 1.006)
	if d, ok := tr.until(1000); !ok || d < 20*time.Hour || d > 30*time.Hour || len(told) != 0 {
		t.Errorf("at a thousandth of a percent a second: %s, %t; told %v", d, ok, told)
	}
	if f := tr.forecast(); !strings.Contains(f, "in about 27 h") && !strings.Contains(f, "in about 28 h") {
		t.Errorf("forecast %q", f)
	}
	// Ten bytes a second of a thousand: told once it is the rate, and once only.
	_, told = fillTrack(tr, at, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13)
	if len(told) != 1 {
		t.Errorf("told at %v, want once", told)
	}
	if d, ok := tr.until(1000); !ok || d < 80*time.Second || d > 95*time.Second {
		t.Errorf("at a percent a second: %s, %t", d, ok)
	}
}

func TestTrack_KnowsNoRateOfWhatStandsStillOrIsNew(t *testing.T) {
	tr := &track{}
	at, _ := fillTrack(tr, 0, 1, 5)
	if _, ok := tr.until(1000); ok {
		t.Error("two samples make a rate")
	}
	fillTrack(tr, at, 5, 5, 5, 5, 5, 5, 5, 5)
	if d, ok := tr.until(1000); ok || tr.forecast() != "" {
		t.Errorf("what stands still is full in %s", d)
	}
	if got := tr.next(70, time.Second, 10*time.Second); got != 10*time.Second {
		t.Errorf("it is looked at every %s", got)
	}
}

func TestTrack_IsBoundedWhateverTheReadingsAre(t *testing.T) {
	tr := &track{}
	for i := range 10_000 {
		tr.observe(time.Duration(i)*10*time.Millisecond, float64(i), 1e6)
	}
	if len(tr.samples) > maxSamples || cap(tr.samples) > 2*maxSamples {
		t.Errorf("%d samples in room for %d", len(tr.samples), cap(tr.samples))
	}
	if span := tr.samples[len(tr.samples)-1].at - tr.samples[0].at; span < minSpan {
		t.Errorf("a swarm of readings leaves a history of %s", span)
	}
	tr.observe(0, 5, 1e6) // a reading that came late
	if last := tr.samples[len(tr.samples)-1]; last.at == 0 {
		t.Error("time went back")
	}
}

func TestTrack_IsLookedAtTheOftenerTheFasterItFills(t *testing.T) {
	last := time.Hour
	for _, step := range []float64{0.01, 0.3, 3} {
		tr := &track{}
		fillTrack(tr, 0, step, 2*step, 3*step, 4*step, 5*step)
		next := tr.next(70, 100*time.Millisecond, time.Minute)
		if next >= last || next < 100*time.Millisecond {
			t.Errorf("at %v %% a second: every %s, more slowly filled: every %s", step, next, last)
		}
		last = next
	}
}
