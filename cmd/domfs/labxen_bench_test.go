package main

import (
	"bufio"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"domfs/backend/backendtest/labneed"
	"domfs/backend/backendtest/labxen"
)

// pauseOf is how long the last snapshot paused its domain, as the program's log tells it.
func pauseOf(t testing.TB, m *mount, skip int) time.Duration {
	t.Helper()
	lines := bufio.NewScanner(strings.NewReader(m.log.String()[skip:]))
	lines.Buffer(nil, mib)
	paused := 0.0
	for lines.Scan() {
		var line struct {
			Msg    string  `json:"msg"`
			Op     string  `json:"op"`
			Paused float64 `json:"paused"` // seconds
		}
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "done" && line.Op == "snapshot" {
			paused = line.Paused
		}
	}
	if paused <= 0 {
		t.Fatal("the log tells of no pause")
	}
	return time.Duration(paused * float64(time.Second))
}

// BenchmarkLabXen_PauseOfARunningDomain compares how long mkdir of a snapshot pauses a guest with two disks with what the store
// takes for it: the very commands that make both snapshots, run by themselves right after, while the guest goes on. On
// real hardware the difference is to be 50 ms at most.
func BenchmarkLabXen_PauseOfARunningDomain(b *testing.B) {
	h := newXenHost(b)
	d := h.two(labxen.Options{Pace: 500 * time.Millisecond})
	m := h.mount("--debug", "--log-format=json", "--map=none", slowPause)
	d.AwaitSynced(3)
	var mkdir, pause, store []time.Duration
	for b.Loop() { // all of the above is done once
		skip := len(m.log.String())
		execs, took := execsOf(b, m, func() { must(b, os.Mkdir(m.at("snapshots", d.Name, "s"), 0o755)) })
		mkdir, pause = append(mkdir, took), append(pause, pauseOf(b, m, skip))
		must(b, os.Remove(m.at("snapshots", d.Name, "s")))
		made := slices.DeleteFunc(execs, func(argv []string) bool { return argv[0] != "lvcreate" })
		if len(made) != 2 {
			b.Fatalf("two disks were snapshotted by %q", made)
		}
		store = append(store, replay(b, made))
		labneed.Run(b, append([]string{"lvremove", "-q", "-y"}, h.ours()...)...)
	}
	m.stop()
	b.ReportMetric(median(mkdir).Seconds(), "mkdir-s")
	b.ReportMetric(median(pause).Seconds(), "pause-s")
	b.ReportMetric(median(store).Seconds(), "store-s")
	b.ReportMetric(float64(median(pause))/float64(median(store)), "pause/store")
	b.ReportMetric(0, "ns/op")
}
