package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"domfs/backend/backendtest/labneed"
)

// execsOf are the programs that a gesture runs, as the program's log tells them, and how long the
// gesture took.
func execsOf(t testing.TB, m *mount, gesture func()) (argvs [][]string, took time.Duration) {
	t.Helper()
	skip := len(m.log.String())
	began := time.Now()
	gesture()
	took = time.Since(began)
	lines := bufio.NewScanner(strings.NewReader(m.log.String()[skip:]))
	lines.Buffer(nil, mib)
	for lines.Scan() {
		var line struct {
			Msg  string   `json:"msg"`
			Argv []string `json:"argv"`
		}
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "exec" {
			argvs = append(argvs, line.Argv)
		}
	}
	return argvs, took
}

// replay runs programs one after another, as a script would.
func replay(t testing.TB, argvs [][]string) time.Duration {
	t.Helper()
	began := time.Now()
	for _, argv := range argvs {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Env = append(os.Environ(), "LC_ALL=C")
		// Whether what is looked at is there depends on the moment.
		if out, err := cmd.CombinedOutput(); err != nil && !slices.Equal(argv[:min(len(argv), 2)], []string{"dmsetup", "status"}) {
			t.Fatalf("%q: %v\n%s", argv, err, out)
		}
	}
	return time.Since(began)
}

// median of some times.
func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// BenchmarkLab_MkdirAndRmdir compares mkdir and rmdir of a snapshot with the very commands that
// they run, run by themselves right after.
func BenchmarkLab_MkdirAndRmdir(b *testing.B) {
	for _, kind := range diskKinds {
		b.Run(kind.name, func(b *testing.B) {
			h := kindHost(b)
			dev := kind.make(h, "vm", 64)
			h.partitioned(dev)
			h.config("vm", "phy:"+dev+",xvda,w")
			m := h.mount("--debug", "--log-format=json")
			var mkdir, rmdir, bareMkdir, bareRmdir []time.Duration
			var made, removed [][]string
			for range b.N {
				var took time.Duration
				made, took = execsOf(b, m, func() { must(b, os.Mkdir(m.at("snapshots/vm/s"), 0o755)) })
				mkdir = append(mkdir, took)
				removed, took = execsOf(b, m, func() { must(b, os.Remove(m.at("snapshots/vm/s"))) })
				rmdir = append(rmdir, took)
				bareMkdir = append(bareMkdir, replay(b, made))
				bareRmdir = append(bareRmdir, replay(b, removed))
			}
			m.stop()
			report := func(name string, ours, bare []time.Duration, argvs [][]string) {
				b.ReportMetric(float64(median(ours))/float64(median(bare)), name+"/bare")
				b.ReportMetric(median(ours).Seconds(), name+"-s")
				for _, argv := range argvs {
					b.Logf("%s: %s", name, strings.Join(argv, " "))
				}
			}
			report("mkdir", mkdir, bareMkdir, made)
			report("rmdir", rmdir, bareRmdir, removed)
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkLab_ListFiftySnapshots lists 50 snapshots of one volume, with their states, beside lvs of
// the same.
func BenchmarkLab_ListFiftySnapshots(b *testing.B) {
	h := kindHost(b)
	dev := h.thin("vg", "pool", "vm", 64)
	h.ext4(dev, "vm", 1)
	h.config("vm", "phy:"+dev+",xvda,w")
	m := h.mount("--map=none")
	for i := range 50 {
		must(b, os.Mkdir(m.at("snapshots/vm", fmt.Sprint(i)), 0o755))
	}
	var ours, lvs []time.Duration
	for range b.N {
		time.Sleep(11 * time.Second) // no reading of the host is as old as this
		began := time.Now()
		names := m.names("snapshots/vm")
		for _, name := range names {
			m.read("snapshots/vm/" + name + "/state")
		}
		ours = append(ours, time.Since(began))
		if len(names) != 50 {
			b.Fatalf("there are %d", len(names))
		}
		began = time.Now()
		labneed.Run(b, "lvs", "--reportformat", "json", "-o", "+lv_tags,data_percent")
		lvs = append(lvs, time.Since(began))
	}
	b.ReportMetric(float64(median(ours))/float64(median(lvs)), "ls/lvs")
	b.ReportMetric(median(ours).Seconds(), "ls-s")
	b.ReportMetric(0, "ns/op")
	for i := range 50 {
		must(b, os.Remove(m.at("snapshots/vm", fmt.Sprint(i))))
	}
	m.stop()
}
