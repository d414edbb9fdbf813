package image

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest/loop"
	"domfs/backend/backendtest/testneed"
)

var bg = context.Background()

// The bytes of the image that crash tests change, and its sizes before and after.
const (
	crashSize  = 3 << 20
	crashGrown = 4 << 20
)

// changeHelper makes every change that the store knows, one after the other.
func changeHelper(args []string) error {
	path := args[0]
	s := New([]string{filepath.Dir(path)}, nil, nil)
	first, err := active(s, path, "first", backend.SnapshotMeta{})
	if err != nil {
		return err
	}
	second, err := active(s, path, "second", backend.SnapshotMeta{})
	if err != nil {
		return err
	}
	meta := second.SnapshotMeta
	meta.Name = "renamed"
	if err := s.Annotate(bg, second.With(meta)); err != nil {
		return err
	}
	if err := s.Remove(bg, first); err != nil {
		return err
	}
	volumes, err := s.Volumes(bg, rawDisks([]string{path}))
	if err != nil {
		return err
	}
	_, err = s.Resize(bg, volumes[0], crashGrown)
	return err
}

func TestChanges_SurviveACrashAtEveryStep(t *testing.T) {
	testneed.Tools(t, "go")
	testneed.Loop(t)
	binary := filepath.Join(t.TempDir(), "faulty")
	loop.Command(t, "go", "test", "-c", "-tags", "faults", "-o", binary, ".")
	for name, folder := range map[string]string{"copy": mountedExt4(t, 64<<20), "clone": mountedXFS(t)} {
		t.Run(name, func(t *testing.T) {
			trace := filepath.Join(t.TempDir(), "trace")
			run := func(sub, fault string) (path string, killed bool) {
				t.Helper()
				path = filepath.Join(folder, sub, "web-01.img")
				if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				sparseImage(t, path, crashSize, 0, 1<<20, 2<<20)
				cmd := exec.Command(binary, path)
				cmd.Env = append(os.Environ(), helperEnv+"=change", "DOMFS_FAULT="+fault, "DOMFS_FAULT_TRACE="+trace)
				out, err := cmd.CombinedOutput()
				status, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
				if killed = status.Signaled() && status.Signal() == syscall.SIGKILL; !killed && err != nil {
					t.Fatalf("%s: %v: %s", fault, err, out)
				}
				return path, killed
			}
			whole, _ := run("whole", "")
			if st, err := os.Stat(whole); err != nil || st.Size() != crashGrown {
				t.Fatalf("without a fault: %v, %v", st, err)
			}
			b, err := os.ReadFile(trace)
			if err != nil {
				t.Fatal(err)
			}
			count := map[string]int{}
			for i, point := range strings.Fields(string(b)) {
				count[point]++
				fault := fmt.Sprintf("%s:%d", point, count[point])
				path, killed := run(fmt.Sprint(i), fault)
				if !killed {
					t.Errorf("%s is not passed", fault)
				}
				checkAfterCrash(t, path, fault)
				if err := os.RemoveAll(filepath.Dir(path)); err != nil {
					t.Fatal(err)
				}
			}
			for _, point := range []string{"image.snapshot.renamed", "image.snapshot.manifest-written", "image.annotate.manifest-renamed", "image.remove.unlinked", "image.resize.truncated"} {
				if count[point] == 0 {
					t.Errorf("%s was not passed", point)
				}
			}
			if name == "copy" && count["image.fill.complete"] == 0 {
				t.Error("image.fill.complete was not passed")
			}
		})
	}
}

// checkAfterCrash does as a daemon does at its start, and looks at what is left.
func checkAfterCrash(t *testing.T, path, fault string) {
	t.Helper()
	folder := filepath.Dir(path)
	want := filepath.Join(t.TempDir(), "want")
	sparseImage(t, want, crashSize, 0, 1<<20, 2<<20)
	s := New([]string{folder}, nil, nil)
	if err := s.Repair(bg); err != nil {
		t.Errorf("%s: Repair: %v", fault, err)
	}
	snaps, err := s.Snapshots(bg)
	if err != nil {
		t.Errorf("%s: Snapshots: %v", fault, err)
	}
	var accounted []string
	for _, snap := range snaps {
		switch snap.State {
		case backend.SnapshotActive:
			loop.Command(t, "cmp", want, snap.Volume.ID)
			set := filepath.Dir(snap.Volume.ID)
			accounted = append(accounted, filepath.Dir(set), set, snap.Volume.ID, filepath.Join(set, "xvda.json"))
		case backend.SnapshotPending, backend.SnapshotFilling, backend.SnapshotRemoving:
			if err := s.Remove(bg, snap); err != nil {
				t.Errorf("%s: Remove: %v", fault, err)
			}
		default:
			t.Errorf("%s: left a snapshot in state %s: %v", fault, snap.State, snap.Volume.Err)
		}
	}
	filepath.Walk(filepath.Join(folder, hiddenName), func(path string, _ os.FileInfo, err error) error {
		if err == nil && !slices.Contains(accounted, path) {
			t.Errorf("%s: left %s", fault, path)
		}
		return nil
	})
	st, err := os.Stat(path)
	if err != nil || st.Size() != crashSize && st.Size() != crashGrown {
		t.Errorf("%s: the image is %v, %v", fault, st, err)
	}
	loop.Command(t, "cmp", fmt.Sprintf("--bytes=%d", crashSize), want, path)
}
