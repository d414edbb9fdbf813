package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// points are the steps that the program passes while gesture is done on a mount of a
// host: "name:k" for the k-th time.
func points(t *testing.T, h *host, gesture func(m *mount)) []string {
	t.Helper()
	return pointsOf(t, h, gesture)[0]
}

// pointsOf are the points of each of several gestures, which are done one after the other on one mount, and at last those that
// the program passes as it ends.
func pointsOf(t *testing.T, h *host, gestures ...func(m *mount)) (passed [][]string) {
	t.Helper()
	trace := filepath.Join(h.dir, "trace")
	must(t, os.WriteFile(trace, nil, 0o600)) // another gesture's
	m, err := h.start([]string{"DOMFS_FAULT_TRACE=" + trace}, h.mnt)
	must(t, err)
	before := len(strings.Fields(readFile(t, trace)))
	for _, gesture := range append(gestures[:len(gestures):len(gestures)], (*mount).stop) {
		gesture(m)
		names := strings.Fields(readFile(t, trace))
		count := map[string]int{}
		var of []string
		for _, name := range names[before:] {
			count[name]++
			of = append(of, fmt.Sprintf("%s:%d", name, count[name]))
		}
		passed = append(passed, of)
		before = len(names)
	}
	return passed
}

// mortal starts a program that killedAt can kill.
func (h *host) mortal() *mount {
	h.t.Helper()
	must(h.t, os.WriteFile(h.faultFile(), nil, 0o600))
	m, err := h.start([]string{"DOMFS_FAULT_FILE=" + h.faultFile()}, h.mnt)
	must(h.t, err)
	return m
}

// faultFile says where such a program is to end.
func (h *host) faultFile() string { return filepath.Join(h.dir, "fault") }

// killedAt does a gesture, in which the program is killed at a point.
func (m *mount) killedAt(point string, gesture func(m *mount)) {
	m.t.Helper()
	file := m.host.faultFile()
	must(m.t, os.WriteFile(file+".new", []byte(point), 0o600))
	must(m.t, os.Rename(file+".new", file))
	gesture(m)
	m.awaitKilled(point)
}

// awaitKilled waits until the program is killed at a point.
func (m *mount) awaitKilled(point string) {
	m.t.Helper()
	eventually(m.t, endLimit, "the program is killed at "+point, func() bool {
		select {
		case <-m.done:
			return true
		default:
			return false
		}
	})
	if m.cmd.ProcessState.Success() {
		m.t.Fatalf("the program was not killed at %s", point)
	}
}

// killedAt starts the program and does the gesture, in which it is killed at a point.
func killedAt(t *testing.T, h *host, point string, gesture func(m *mount)) {
	t.Helper()
	h.mortal().killedAt(point, gesture)
}

// relay kills one program after the other, each at another step of a change. Who repairs what a kill left is the program that
// is killed next.
type relay struct {
	t    *testing.T
	host *host
	last string // where the one before was killed; "" if none was
	// repaired checks what a program made, as it started, of what one left that was killed while this was its value.
	repaired func(t *testing.T, m *mount)
	check    func(t *testing.T, m *mount) // repaired, as the one before was killed
}

// killedAt runs a test in which a program repairs what the one before left, and is killed at a point in the gesture. What prepare does is not counted.
func (r *relay) killedAt(name, point string, prepare, gesture func(m *mount)) {
	r.t.Run(name, func(t *testing.T) {
		m := r.next(t)
		prepare(m)
		m.killedAt(point, gesture)
		r.last, r.check = point, r.repaired
	})
}

// next is the program that repairs what the one before left. Its mount stays until the next has covered it.
func (r *relay) next(t *testing.T) *mount {
	m := r.host.mortal()
	m.t = t
	t.Cleanup(func() {
		if t.Failed() {
			m.clear()
		}
		m.t = r.t
	})
	if r.last != "" {
		t.Logf("the program before was killed at %s", r.last)
		if r.check == nil {
			r.check = r.repaired
		}
		r.check(t, m)
	}
	return m
}

// images are the bytes of the tiny host's disks.
func (h *host) disks() [2][]byte {
	h.t.Helper()
	return [2][]byte{[]byte(readFile(h.t, h.images+"/a.img")), []byte(readFile(h.t, h.images+"/b.img"))}
}

// copiesAre checks that a snapshot's disks are those bytes.
func (m *mount) copiesAre(name string, want [2][]byte) {
	m.t.Helper()
	for i, vdev := range []string{"xvda", "xvdb"} {
		got, err := os.ReadFile(m.at("snapshots/vm", name, "disks", vdev, "raw"))
		must(m.t, err)
		if !bytes.Equal(got, want[i]) {
			m.t.Errorf("%s of snapshot %s is not what the disk was", vdev, name)
		}
	}
}

func TestSnapshot_KilledAtAnyStepLeavesAllOrNothing(t *testing.T) {
	h := tinyHost(t)
	want := h.disks()
	steps := points(t, h, func(m *mount) { m.snapshot("vm", "s") })
	if len(steps) < 10 {
		t.Fatalf("a snapshot passes only %q", steps)
	}
	clean(t, h, "s")
	complete := 0
	for _, step := range steps {
		t.Run(step, func(t *testing.T) {
			h := h.within(t)
			killedAt(t, h, step, func(m *mount) { _ = os.Mkdir(m.at("snapshots/vm/s"), 0o755) })
			m := h.mount()
			switch names := m.names("snapshots/vm"); {
			case len(names) == 0:
				if litter := h.litter(); len(litter) != 0 {
					t.Errorf("there is no snapshot, but %q", litter)
				}
			case slices.Equal(names, []string{"s"}):
				complete++
				if state := m.read("snapshots/vm/s/state"); state != "active" {
					t.Errorf("the snapshot is %s", state)
				}
				m.copiesAre("s", want)
			default:
				t.Errorf("snapshots: %q", names)
			}
			if got := h.disks(); !bytes.Equal(got[0], want[0]) || !bytes.Equal(got[1], want[1]) {
				t.Error("the images have changed")
			}
			// All that could be done before can be done now.
			if len(m.names("snapshots/vm")) == 0 {
				m.snapshot("vm", "s")
				m.copiesAre("s", want)
			}
			must(t, os.Remove(m.at("snapshots/vm/s")))
			m.stop()
			if litter := h.litter(); len(litter) != 0 {
				t.Errorf("left at the end: %q", litter)
			}
		})
	}
	if complete == 0 {
		t.Error("no step comes after the snapshot is complete: the last ones are not covered")
	}
}

func TestRemove_KilledAtAnyStepLosesNothingElse(t *testing.T) {
	h := tinyHost(t)
	want := h.disks()
	m := h.mount()
	m.snapshot("vm", "keep")
	m.stop()
	steps := points(t, h, func(m *mount) {
		m.snapshot("vm", "go")
		must(t, os.Remove(m.at("snapshots/vm/go")))
	})
	steps = slices.DeleteFunc(steps, func(s string) bool { return !strings.Contains(s, "remove") })
	if len(steps) < 3 {
		t.Fatalf("a removal passes only %q", steps)
	}
	for _, step := range steps {
		t.Run(step, func(t *testing.T) {
			h := h.within(t)
			m := h.mount()
			if !slices.Contains(m.names("snapshots/vm"), "go") {
				m.snapshot("vm", "go")
			}
			m.stop()
			killedAt(t, h, step, func(m *mount) { _ = os.Remove(m.at("snapshots/vm/go")) })
			m = h.mount()
			names := m.names("snapshots/vm")
			if !slices.Contains(names, "keep") {
				t.Fatalf("snapshots: %q", names)
			}
			m.copiesAre("keep", want)
			if slices.Contains(names, "go") {
				if state := m.read("snapshots/vm/go/state"); state != "active" {
					t.Errorf("the snapshot is %s", state)
				}
				m.copiesAre("go", want)
			}
			m.stop()
		})
	}
	clean(t, h, "keep")
}

func TestGrow_KilledAtAnyStepIsDoneOrNot(t *testing.T) {
	h := tinyHost(t)
	want := h.disks()
	const size = "xenstore/vm/disks/xvda/size"
	steps := points(t, h, func(m *mount) { must(t, m.set(size, "+1M")) })
	if len(steps) < 3 {
		t.Fatalf("a growth passes only %q", steps)
	}
	for _, step := range steps {
		t.Run(step, func(t *testing.T) {
			h := h.within(t)
			must(t, os.WriteFile(h.images+"/a.img", want[0], 0o600))
			killedAt(t, h, step, func(m *mount) { _ = m.set(size, "+1M") })
			m := h.mount()
			got := m.read(size)
			if got != "8388608" && got != "9437184" {
				t.Errorf("the size is %s", got)
			}
			now := h.disks()
			if !bytes.Equal(now[0][:8<<20], want[0]) || !bytes.Equal(now[1], want[1]) || len(bytes.Trim(now[0][8<<20:], "\x00")) != 0 {
				t.Error("the images' bytes have changed")
			}
			if litter := h.litter(); len(litter) != 0 {
				t.Errorf("left: %q", litter)
			}
			must(t, m.set(size, "9M"))
			if got := m.read(size); got != "9437184" {
				t.Errorf("the size is %s after all", got)
			}
			m.stop()
		})
	}
}

// within is the host for a subtest.
func (h *host) within(t *testing.T) *host {
	sub := *h
	sub.t = t
	return &sub
}

// clean removes a snapshot.
func clean(t *testing.T, h *host, name string) {
	t.Helper()
	m := h.mount()
	must(t, os.Remove(m.at("snapshots/vm", name)))
	m.stop()
	if litter := h.litter(); len(litter) != 0 {
		t.Errorf("left: %q", litter)
	}
}
