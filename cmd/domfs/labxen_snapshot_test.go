package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"domfs/backend/backendtest/labneed"
	"domfs/backend/backendtest/labxen"
	"domfs/testdata/lab/domu/records"

	"golang.org/x/sys/unix"
)

// cutOf is what both disks of a guest hold in a snapshot: their records, read without the host's kernel.
func cutOf(t testing.TB, m *mount, domain, name string) [][]byte {
	t.Helper()
	var cut [][]byte
	for _, path := range []string{"lvm/" + labxen.Group + "/root/files/" + labxen.RootRecords, "disks/xvdb/files/" + labxen.DataRecords} {
		text, err := os.ReadFile(m.at("snapshots", domain, name, path))
		must(t, err)
		cut = append(cut, text)
	}
	return cut
}

// One guest that writes to two disks all the time, and all that a snapshot of it can be, or meet.
func TestLabXen_ARunningDomain(t *testing.T) {
	h := newXenHost(t)
	d := h.two(labxen.Options{Pace: easyPace})
	d.AwaitSynced(3)
	h.share(t, d, []subtest{
		{"has snapshots of one instant", snapshotsAreOfOneInstant},
		{"has snapshots of an instant of each disk without a pause", withoutAPauseEachDiskIsOfItsOwnInstant},
		{"stays paused if the admin has paused it", whatTheAdminPausedStaysPaused},
		{"goes on if the program is killed during its pause", killedDuringItsPauseTheGuestGoesOn},
		{"is frozen by the admin's commands", frozenByTheAdminsCommands},
	})
}

// Twenty snapshots of a guest that writes all the time: each is of one instant, and has what was synced before it began. Without the pause one in
// three is not of one instant here, where the guest has little of the processor meanwhile.
func snapshotsAreOfOneInstant(t *testing.T, h *xenHost, d *labxen.DomU) {
	m := h.mount("--map=none", slowPause)
	for round := range 20 {
		synced, began := d.Synced(), time.Now()
		m.snapshot(d.Name, "s")
		t.Logf("round %d: snapshotted in %v", round, time.Since(began))
		if got := m.read("snapshots/" + d.Name + "/s/consistency"); got != "paused" {
			t.Errorf("consistency is %q", got)
		}
		last, err := records.Check(cutOf(t, m, d.Name, "s")...)
		if err != nil || last < synced {
			t.Errorf("the snapshot has records up to %d, %v; %d was synced before", last, err, synced)
		}
		if h.isPaused(d) {
			t.Error("the guest is still paused")
		}
		must(t, os.Remove(m.at("snapshots", d.Name, "s")))
		d.AwaitRecord(last + 2) // the next is to be another
	}
	m.stop()
}

// Without a pause each disk is of an instant of its own.
func withoutAPauseEachDiskIsOfItsOwnInstant(t *testing.T, h *xenHost, d *labxen.DomU) {
	m := h.mount("--no-pause", "--map=none")
	for range 2 {
		synced := d.Synced()
		m.snapshot(d.Name, "s")
		if got := m.read("snapshots/" + d.Name + "/s/consistency"); got != "crash-per-disk" {
			t.Errorf("consistency is %q", got)
		}
		for i, text := range cutOf(t, m, d.Name, "s") {
			// A disk by itself has all of its own records without a gap.
			for n, line := i+1, 0; line*records.LineBytes < len(text); n, line = n+2, line+1 {
				if got := string(text[line*records.LineBytes : (line+1)*records.LineBytes]); got != string(records.Line(n)) {
					t.Fatalf("disk %d has %q where record %d belongs", i, got, n)
				}
			}
			if last := 2*(len(text)/records.LineBytes) - 1 + i; last < synced-1 {
				t.Errorf("disk %d ends with record %d, and %d was synced before", i, last, synced)
			}
		}
		must(t, os.Remove(m.at("snapshots", d.Name, "s")))
	}
	if strings.Contains(m.log.String(), "pause") {
		t.Error("the log tells of a pause")
	}
	m.stop()
}

func whatTheAdminPausedStaysPaused(t *testing.T, h *xenHost, d *labxen.DomU) {
	m := h.mount("--map=none", slowPause)
	labneed.Run(t, "xl", "pause", d.Name)
	labneed.Eventually(t, "the tree has it paused", func() bool { return m.read("xenstore/"+d.Name+"/state") == "paused" })
	m.snapshot(d.Name, "s")
	if _, err := records.Check(cutOf(t, m, d.Name, "s")...); err != nil {
		t.Error(err)
	}
	if !h.isPaused(d) {
		t.Error("the snapshot has resumed it")
	}
	labneed.Run(t, "xl", "unpause", d.Name)
	d.AwaitSynced(3)
	must(t, os.Remove(m.at("snapshots", d.Name, "s")))
	m.stop()
}

// A program that is killed while it has the guest paused does not leave it so.
func killedDuringItsPauseTheGuestGoesOn(t *testing.T, h *xenHost, d *labxen.DomU) {
	for _, step := range []string{"control.snapshot.paused:1", "control.snapshot.disk:2"} {
		t.Run(step, func(t *testing.T) {
			h, d := h.within(t), d.Within(t)
			killedAt(t, h.host, step, func(m *mount) { _ = os.Mkdir(m.at("snapshots", d.Name, "s"), 0o755) })
			labneed.Eventually(t, "the guest goes on", func() bool { return !h.isPaused(d) })
			d.AwaitSynced(3)
			m := h.mount("--map=none")
			if got := m.names("snapshots/" + d.Name); len(got) != 0 {
				t.Errorf("left: %q", got)
			}
			m.stop()
			if got := h.ours(); len(got) != 0 {
				t.Errorf("left: %q", got)
			}
		})
	}
}

func frozenByTheAdminsCommands(t *testing.T, h *xenHost, d *labxen.DomU) {
	said := filepath.Join(h.dir, "said")
	m := h.mount("--freeze-cmd=echo freeze $DOMFS_DOMAIN >>"+said, "--thaw-cmd=echo thaw $DOMFS_DOMAIN >>"+said, "--map=none", slowPause)
	m.snapshot(d.Name, "s")
	if got := m.read("snapshots/" + d.Name + "/s/consistency"); got != "frozen" {
		t.Errorf("consistency is %q", got)
	}
	if got := readFile(t, said); got != "freeze "+d.Name+"\nthaw "+d.Name+"\n" {
		t.Errorf("the commands said %q", got)
	}
	must(t, os.Remove(m.at("snapshots", d.Name, "s")))
	m.stop()
	m = h.mount("--freeze-cmd=echo frozen >>"+said+"; exit 3", "--thaw-cmd=echo thawed >>"+said, "--map=none")
	if err := os.Mkdir(m.at("snapshots", d.Name, "s"), 0o755); err == nil || errors.Is(err, unix.EEXIST) {
		t.Errorf("mkdir with a freeze that fails: %v", err)
	}
	if got := readFile(t, said); !strings.HasSuffix(got, "frozen\nthawed\n") {
		t.Errorf("the commands said %q", got)
	}
	m.stop()
}
