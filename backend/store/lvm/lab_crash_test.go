package lvm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest/labneed"
)

// crashEnv is set for the process that a crash test kills: the name of its work, a blank, and what that is to be done on.
const crashEnv = "DOMFS_LVM_CRASH"

var crashWork = map[string]func(on string) error{"changes": everyChange, "volume": makeAndRemove}

func init() {
	name, on, found := strings.Cut(os.Getenv(crashEnv), " ")
	if !found {
		return
	}
	if err := crashWork[name](on); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// crasher runs some work in a process of its own, again and again.
type crasher struct{ work, on, trace string }

func newCrasher(t *testing.T, work, on string) crasher {
	return crasher{work, on, filepath.Join(t.TempDir(), "trace")}
}

func (c crasher) command(env ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), crashEnv+"="+c.work+" "+c.on), env...)
	return cmd
}

// run does the work up to a point; "" is all of it.
func (c crasher) run(t *testing.T, fault string) (killed bool) {
	t.Helper()
	cmd := c.command("DOMFS_FAULT="+fault, "DOMFS_FAULT_TRACE="+c.trace)
	out, err := cmd.CombinedOutput()
	status, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if killed = status.Signaled() && status.Signal() == syscall.SIGKILL; !killed && err != nil {
		t.Fatalf("%s: %v: %s", fault, err, out)
	}
	return killed
}

// points are those that all runs so far have passed.
func (c crasher) points(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(c.trace)
	if err != nil {
		t.Skip("built without the tag faults")
	}
	return strings.Fields(string(text))
}

// everyChange makes every change of an LV that the store knows, one after the other.
func everyChange(id string) error {
	vgName, _, _ := strings.Cut(id, "/")
	s := New(Options{VGs: []string{vgName}, SnapshotSize: "4M"})
	d := labDisk(id, "xvda")
	volumes, err := s.Volumes(bg, []backend.Disk{d})
	if err != nil {
		return err
	}
	req := backend.SnapshotRequest{Origin: volumes[0], Meta: backend.SnapshotMeta{Set: labSet, Name: "nightly", DomainName: "web-01", Disk: d,
		DiskCount: 1, State: backend.SnapshotPending}}
	// What a crash of the growth leaves has nothing to do with the snapshot that was there before.
	if !strings.HasPrefix(os.Getenv("DOMFS_FAULT"), "lvm.resize.") {
		if err := everySnapshotChange(s, req); err != nil {
			return err
		}
	}
	_, err = s.Resize(bg, req.Origin, req.Origin.SizeBytes+4*mib)
	return err
}

func everySnapshotChange(s *Store, req backend.SnapshotRequest) error {
	g, err := s.Prepare(bg, []backend.SnapshotRequest{req}, true)
	if err != nil {
		return err
	}
	defer g.Release()
	sn, err := s.Snapshot(bg, req, g)
	if err != nil {
		return err
	}
	if sn.ReserveBytes > 0 {
		if _, err := s.ExtendReserve(bg, sn, 8*mib); err != nil {
			return err
		}
	}
	m := sn.SnapshotMeta
	m.State = backend.SnapshotRemoving
	if err := s.Annotate(bg, sn.With(m)); err != nil {
		return err
	}
	sn.SnapshotMeta = m
	return s.Remove(bg, sn)
}

// crashVG makes what everyChange works on.
func crashVG(t *testing.T, vgName string) {
	t.Helper()
	labVG(t, vgName, 1, 512*mib)
	lvmTool(t, "lvcreate -qq -y -n thick -L 8M "+vgName)
	lvmTool(t, "lvcreate -qq -y --type thin -L 32M --thinpool pool -V 8M -n thin "+vgName)
}

func TestLabChanges_SurviveACrashAtEveryStep(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	crashVG(t, "crash")
	for _, name := range []string{"thick", "thin"} {
		t.Run(name, func(t *testing.T) {
			id := "crash/" + name
			c := newCrasher(t, "changes", id)
			mark := randomBytes(mib)
			writeDevice(t, "/dev/"+id, mark, 0)
			c.run(t, "")
			settleAsAStart(t, "crash", "the end")
			points := c.points(t)
			for _, point := range []string{"lvm.snapshot.begin", "lvm.snapshot.created", "lvm.snapshot.node", "lvm.annotate.begin", "lvm.annotate.done",
				"lvm.remove.begin", "lvm.remove.done", "lvm.reserve.begin", "lvm.reserve.done", "lvm.resize.begin", "lvm.resize.done"} {
				if !slices.Contains(points, point) && !(name == "thin" && strings.HasPrefix(point, "lvm.reserve.")) {
					t.Errorf("%s was not passed", point)
				}
			}
			for _, point := range points { // each once
				// Before a change all is as the point before it left it, the node is udev's, and the last one is the end.
				if strings.HasSuffix(point, ".begin") || point == "lvm.snapshot.node" || point == points[len(points)-1] {
					continue
				}
				if !c.run(t, point) {
					t.Errorf("%s is not passed", point)
				}
				settleAsAStart(t, "crash", point)
				t.Logf("killed at %s: settled", point)
			}
			if !bytes.Equal(readDevice(t, "/dev/"+id, mib, 0), mark) {
				t.Errorf("%s lost its bytes", name)
			}
		})
	}
}

// settleAsAStart does as a daemon does at its start, removes what then is active, too, and looks at what is left.
func settleAsAStart(t *testing.T, vgName, after string) {
	t.Helper()
	s := New(Options{VGs: []string{vgName}})
	if err := s.Resume(bg); err != nil {
		t.Errorf("%s: Resume: %v", after, err)
	}
	snaps, err := s.Snapshots(bg)
	if err != nil {
		t.Fatalf("%s: Snapshots: %v", after, err)
	}
	for _, sn := range snaps {
		switch {
		case sn.Foreign:
			t.Errorf("%s: left %s, which is nobody's", after, sn.Volume.ID)
		case sn.State == backend.SnapshotActive && sn.Volume.Err == nil:
		case sn.State == backend.SnapshotPending || sn.State == backend.SnapshotRemoving:
		default:
			t.Errorf("%s: left %+v", after, sn)
		}
		if err := s.Remove(bg, sn); err != nil {
			t.Errorf("%s: Remove: %v", after, err)
		}
	}
	if err := s.Repair(bg); err != nil {
		t.Errorf("%s: Repair: %v", after, err)
	}
	for line := range strings.Lines(lvmTool(t, "lvs --noheadings -o lv_name,lv_attr "+vgName)) {
		fields := strings.Fields(line)
		if fields[0] != "thick" && fields[0] != "pool" && fields[0] != "thin" {
			t.Errorf("%s: left the LV %s", after, line)
		}
	}
	for line := range strings.Lines(labneed.Run(t, "dmsetup", "info", "-c", "--noheadings", "-o", "name,suspended")) {
		if name, state, _ := strings.Cut(strings.TrimSpace(line), ":"); strings.HasPrefix(name, vgName+"-") && (state == "Suspended" || strings.Contains(name, "domfs")) {
			t.Fatalf("%s: left the device %s", after, line) // to read one that is suspended would hang
		}
	}
	for _, name := range []string{"thick", "thin"} {
		readDevice(t, "/dev/"+vgName+"/"+name, 4096, 0)
	}
}

// TestLabRepair_EndsWhatAKilledToolBegan kills lvcreate, lvremove and lvextend at any moment, as the OOM killer may.
func TestLabRepair_EndsWhatAKilledToolBegan(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	crashVG(t, "killed")
	changes := func(name string) *exec.Cmd { return crasher{work: "changes", on: "killed/" + name}.command() }
	began := time.Now()
	if out, err := changes("thick").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	whole := time.Since(began)
	const rounds = 8
	for round := range rounds {
		after := whole * time.Duration(round+1) / (rounds + 1)
		cmd := changes([]string{"thick", "thin"}[round%2])
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after)
		killTools(cmd.Process.Pid)
		cmd.Wait()
		settleAsAStart(t, "killed", fmt.Sprintf("killed after %v", after))
		t.Logf("killed after %v of %v: settled", after, whole)
		if t.Failed() {
			return
		}
	}
}

// killTools kills a process, and then the tools that it had started.
func killTools(pid int) {
	syscall.Kill(pid, syscall.SIGSTOP) // so that it starts no more
	children, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, stat := range children {
		text, err := os.ReadFile(stat)
		if err != nil {
			continue
		}
		var child, parent int
		var state string
		after := text[bytes.LastIndexByte(text, ')')+1:]
		if _, err := fmt.Sscan(string(after), &state, &parent); err != nil || parent != pid {
			continue
		}
		if _, err := fmt.Sscan(string(text), &child); err == nil {
			syscall.Kill(child, syscall.SIGKILL)
		}
	}
	syscall.Kill(pid, syscall.SIGKILL)
}

func TestLabRepair_ActivatesOurThinSnapshots(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	crashVG(t, "again")
	s := New(Options{VGs: []string{"again"}})
	thin := labSnapshot(t, s, "again/thin", labSet, "xvdb")
	thick := labSnapshot(t, s, "again/thick", labSet, "xvda")
	lvmTool(t, "lvcreate -qq -y -s -n byhand again/thin")
	want := readDevice(t, thin.Path, mib, 0)
	labneed.Deactivate(t, "again")
	lvmTool(t, "vgchange -qq -ay again")
	labneed.Deactivate(t, thin.Volume.ID)
	labneed.Settle(t)
	if got := labListed(t, s, thin.Volume.ID); got == nil || !errors.Is(got.Volume.Err, backend.ErrNoDevice) {
		t.Errorf("listed as %+v", got)
	}
	for range 2 {
		if err := s.Repair(bg); err != nil {
			t.Fatal(err)
		}
	}
	for _, sn := range []backend.Snapshot{thin, thick} {
		if got := labListed(t, s, sn.Volume.ID); got == nil || got.Volume.Err != nil || got.State != backend.SnapshotActive {
			t.Errorf("listed as %+v", got)
		}
	}
	if got := readDevice(t, thin.Path, mib, 0); !bytes.Equal(got, want) {
		t.Error("other bytes")
	}
	if attr := lvmTool(t, "lvs --noheadings -o lv_attr again/byhand"); attr[4] != '-' {
		t.Errorf("the admin's own snapshot has the attributes %s: it is active", attr)
	}
	// A snapshot whose origin is gone is one still.
	lvmTool(t, "lvremove -qq -f -y again/thin")
	if err := New(Options{VGs: []string{"again"}}).Repair(bg); err != nil {
		t.Fatal(err)
	}
	if got := labListed(t, s, thin.Volume.ID); got == nil || got.Foreign || got.Volume.Err != nil {
		t.Errorf("listed as %+v", got)
	}
	// What an admin has made a volume of its own is theirs.
	lvmTool(t, "lvconvert -qq -y --splitsnapshot "+thick.Volume.ID)
	if err := New(Options{VGs: []string{"again"}}).Repair(bg); err != nil {
		t.Fatal(err)
	}
	if _, err := labneed.Try("lvs", thick.Volume.ID); err != nil {
		t.Error(err)
	}
}
