package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// tally counts what comes of the changes.
type tally struct {
	images   int
	faulty   int // images with errors, as they should be
	refused  int // images that were not opened for what they say they use
	unknown  int // images in which nothing was recognized
	files    int
	peakKiB  int64
	slowest  time.Duration
	slowName string
	findings map[string]*finding
	perSeed  map[string]*[3]int // images, with errors, with findings
}

// finding is the first of those that are alike.
type finding struct {
	what, text, image, did string
	seeds                  map[string]bool
	times                  int
}

func newTally() *tally { return &tally{findings: map[string]*finding{}, perSeed: map[string]*[3]int{}} }

var (
	numbers = regexp.MustCompile(`0x[0-9a-fA-F]+|\b[0-9]+\b|"(\\.|[^"\\])*"`)
	frames  = regexp.MustCompile(`(?m)^(domfs/[^\s(]+)`)
)

// signature is what findings have in common that are alike: the text without its numbers and names, or of a crash
// our functions on its stack.
func (p problem) signature() string {
	text, _, _ := strings.Cut(p.Text, "\n")
	if p.What == crash || p.What == overrun || p.What == hang {
		calls := frames.FindAllString(p.Text, 4)
		if p.What == crash {
			for line := range strings.Lines(p.Text) {
				if strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") {
					text = line
					break
				}
			}
		}
		return p.What + " " + numbers.ReplaceAllString(text, "N") + strings.Join(calls, " ")
	}
	return p.What + " " + numbers.ReplaceAllString(text, "N")
}

// add counts an image. keep is called for the first finding of its kind.
func (t *tally) add(seed string, r *report, took time.Duration, did string, keep func() string) {
	t.images++
	per := t.perSeed[seed]
	if per == nil {
		per = &[3]int{}
		t.perSeed[seed] = per
	}
	per[0]++
	t.files += r.Files
	t.peakKiB = max(t.peakKiB, r.PeakKiB)
	if took > t.slowest {
		t.slowest, t.slowName = took, seed
	}
	if r.Refused != "" {
		t.refused++
	}
	if len(r.Kinds) > 0 && r.Kinds[0] == "" {
		t.unknown++
	}
	if r.Faults > 0 {
		t.faulty++
		per[1]++
	}
	if len(r.Problems) > 0 {
		per[2]++
	}
	for _, p := range r.Problems {
		key := p.signature()
		f := t.findings[key]
		if f == nil {
			f = &finding{what: p.What, text: p.Text, did: did, seeds: map[string]bool{}}
			f.image = keep()
			t.findings[key] = f
		}
		f.times++
		f.seeds[seed] = true
	}
}

// show prints the findings, those met most first.
func (t *tally) show(out io.Writer) {
	list := slices.SortedFunc(maps.Values(t.findings), func(a, b *finding) int {
		return cmp.Or(cmp.Compare(b.times, a.times), cmp.Compare(a.text, b.text))
	})
	for _, f := range list {
		fmt.Fprintf(out, "\nFOUND %s, %d times, in %s\n    %s\n", f.what, f.times, strings.Join(slices.Sorted(maps.Keys(f.seeds)), " "),
			strings.ReplaceAll(strings.TrimSpace(f.text), "\n", "\n    "))
		if f.did != "" {
			fmt.Fprintf(out, "    changed: %s\n", f.did)
		}
		if f.image != "" {
			fmt.Fprintf(out, "    again: %s\n", f.image)
		}
	}
}

// summary is the last line.
func (t *tally) summary(took time.Duration) string {
	return fmt.Sprintf("%d images in %.0f s: %d with errors, %d refused, %d not recognized; %d files read; "+
		"at most %d MiB and %.1f s (%s); %d kinds of findings",
		t.images, took.Seconds(), t.faulty, t.refused, t.unknown, t.files, t.peakKiB>>10, t.slowest.Seconds(), t.slowName, len(t.findings))
}
