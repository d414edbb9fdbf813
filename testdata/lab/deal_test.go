package main

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestDeal_EndsAllSlotsAtAboutTheSameTime(t *testing.T) {
	for _, c := range []struct {
		name       string
		slots      int
		xen, plain []float64 // seconds of tests
		kinds      []kind
	}{
		{"no Xen", 2, nil, []float64{100, 90, 80, 70, 60, 50, 40}, []kind{plain, plain}},
		{"Xen as long as the rest", 2, []float64{300, 100}, []float64{100, 90, 80, 70, 60}, []kind{withXen, plain}},
		{"Xen is shorter", 2, []float64{100, 100}, []float64{100, 90, 80, 70, 60, 50, 40, 30, 20, 10}, []kind{withXen, plain, plain}},
		{"Xen is longer", 2, []float64{900}, []float64{100, 90}, []kind{withXen, plain}},
		{"one slot", 1, []float64{100}, []float64{100, 90}, []kind{withXen, plain}},
		{"four slots", 4, []float64{300}, []float64{100, 90, 80, 70, 60, 50, 40, 30, 20, 10}, []kind{withXen, plain, plain, plain}},
		{"only Xen", 2, []float64{100}, nil, []kind{withXen}},
		{"nothing", 2, nil, nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, known := newDeal(c.slots), times{}
			var sum, longest float64
			add := func(prefix string, all []float64) {
				for i, seconds := range all {
					k := test{"a", fmt.Sprint(prefix, i)}
					known[k] = seconds
					d.add(k, known)
					sum += seconds
					longest = max(longest, seconds)
				}
			}
			add("TestLabXen_", c.xen)
			add("TestLab_", c.plain)
			machineOf, kinds := d.out()
			if !reflect.DeepEqual(kinds, c.kinds) {
				t.Fatalf("machines: %v, want %v", kinds, c.kinds)
			}
			// As the machines are started: each in its order, as soon as a slot is free.
			machines := make([]float64, len(kinds))
			for k, seconds := range known {
				machines[machineOf[k]] += seconds
			}
			ends := make([]float64, c.slots)
			var boots float64
			for i, kind := range kinds {
				boot := bootTime
				if kind == withXen {
					boot = bootTimeOfXen
				}
				boots += boot
				first := 0
				for slot := range ends {
					if ends[slot] < ends[first] {
						first = slot
					}
				}
				ends[first] += boot + machines[i]
			}
			end := 0.0
			for _, e := range ends {
				end = max(end, e)
			}
			best := max((sum+boots)/float64(c.slots), longest)
			if len(c.xen) > 0 {
				best = max(best, machines[0]+bootTimeOfXen)
			}
			if end > best+longest/4+bootTime {
				t.Errorf("ends at %v, and could at %v: %v", end, best, ends)
			}
		})
	}
}

func TestTimes_AreReadAsTheyAreWritten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "times")
	want := times{{"a", "TestLab_One"}: 3, {"a", "TestLab_Two"}: 4.2, {"b/c", "TestLab_One"}: 100, {"b/c", "TestLab_Gone"}: 1}
	var out bytes.Buffer
	if err := want.write(&out, func(k test) bool { return k.name != "TestLab_Gone" }); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := readTimes(file)
	if err != nil || len(got) != 3 || got.of(test{"a", "TestLab_New"}) != usualTime {
		t.Fatalf("read: %v, %v", got, err)
	}
	for k, seconds := range got {
		if math.Abs(want[k]-seconds) > 0.5 {
			t.Errorf("%v: %v, want %v", k, seconds, want[k])
		}
	}
	for _, wrong := range []string{"a b", "a b c", "a b -1", "a b 1 2"} {
		if err := os.WriteFile(file, []byte(wrong+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readTimes(file); err == nil {
			t.Errorf("%q is read", wrong)
		}
	}
}
