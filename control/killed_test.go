package control

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"
	"domfs/backend/fake"
	"domfs/backend/run"
	"domfs/backend/run/hold"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	switch {
	case len(os.Args) == 5 && os.Args[1] == "hold": // the keeper of a pause
		if hold.Keep(os.Stdin, os.Stdout, countedKinds, zap.NewNop()) != nil {
			unix.Exit(1)
		}
		unix.Exit(0) // os.Exit would have the race detector sleep
	case len(os.Args) == 3 && os.Args[1] == "snapshot-and-hang": // a program that is to be killed
		snapshotAndHang(os.Args[2])
	}
	os.Exit(m.Run())
}

// counted is the pause of a domain of whose pauses each is a p in the file log, and each unpause a u, or a ? where it is not sure that there is one to undo.
type counted struct{ Dir string }

var countedKinds = hold.Kinds{"paused": func() hold.Task { return &counted{} }}

func (c *counted) note(letter string) error {
	f, err := os.OpenFile(c.Dir+"/log", os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("%w: %w", backend.ErrIO, err)
	}
	defer f.Close()
	_, err = f.WriteString(letter)
	return err
}

func (c *counted) Prepare(context.Context) error                  { return nil }
func (c *counted) Begin(context.Context) (unsure bool, err error) { return false, c.note("p") }
func (c *counted) End(_ context.Context, sure bool) (unsure bool, err error) {
	if !sure {
		return false, c.note("?")
	}
	return false, c.note("u")
}

// keptHypervisor is one whose pauses a process of their own keeps.
type keptHypervisor struct {
	backend.Hypervisor
	dir string
}

func (k keptHypervisor) Pause(ctx context.Context, d backend.Domain) (func(context.Context) error, error) {
	h, err := hold.Start(ctx, hold.Options{Runner: run.New(nil), Records: k.records(), Kinds: countedKinds},
		hold.Spec{Kind: "paused", Name: d.Name, Task: &counted{k.dir}, Begin: 20 * time.Second, Hold: time.Minute, End: 20 * time.Second})
	if err != nil {
		return nil, err
	}
	return h.End, h.Begin(ctx)
}

func (k keptHypervisor) records() string { return k.dir + "/held-" }

func keptHost(dir string) (*fake.Host, backend.Hypervisor) {
	host := fake.NewHost()
	host.AddDomain("web01", uuid1, nil, "xvda", "xvdb")
	host.Hypervisor.Start("web01")
	return host, keptHypervisor{host.Hypervisor.Driver(0), dir}
}

// snapshotAndHang says so when the domain is paused and the first of its disks snapshotted, and does nothing more.
func snapshotAndHang(dir string) {
	host, hv := keptHost(dir)
	host.Store.Plant(fake.Fault{Op: "Snapshot", Nth: 2, Hang: make(chan struct{})})
	h := New(Options{Hypervisors: []backend.Hypervisor{hv}, Stores: []backend.Store{host.Store.Driver(fake.All)}, LockFile: dir + "/lock"})
	if err := h.Start(context.Background()); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	go func() { fmt.Println(h.Snapshot(context.Background(), "web01", "s")) }()
	for host.Store.Calls("Snapshot") < 2 {
		time.Sleep(time.Millisecond)
	}
	fmt.Println("paused")
	select {}
}

// keeperOf is the process that keeps what the only record of a folder names: the one that has it locked.
func keeperOf(t *testing.T, dir string) int {
	t.Helper()
	records, _ := filepath.Glob(dir + "/held-*")
	if len(records) != 1 {
		t.Fatalf("records: %q", records)
	}
	f, err := os.OpenFile(records[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock); err != nil || lock.Type == unix.F_UNLCK {
		t.Fatalf("%s has nobody who keeps it: %v", records[0], err)
	}
	return int(lock.Pid)
}

// All of it is killed during a pause, and started again at once: the domain was unpaused as often as it was paused, and can be snapshotted.
func TestSnapshot_KilledWithItsKeeperTheNextStartResumesTheDomain(t *testing.T) {
	for _, first := range []string{"the program", "the keeper"} {
		t.Run(first+" first", func(t *testing.T) {
			dir := t.TempDir()
			cmd := exec.Command("/proc/self/exe", "snapshot-and-hang", dir)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				cmd.Process.Kill()
				cmd.Wait()
			})
			said := make([]byte, 200)
			if n, _ := out.Read(said); string(said[:n]) != "paused\n" {
				t.Fatalf("it says %q", said[:n])
			}
			pids := []int{cmd.Process.Pid, keeperOf(t, dir)}
			if first == "the keeper" {
				pids[0], pids[1] = pids[1], pids[0]
			}
			// Neither must see the other's end.
			testneed.Stop(t, pids...)
			for _, pid := range pids {
				if err := unix.Kill(pid, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			wantLog := func(want string) {
				t.Helper()
				if log, _ := os.ReadFile(dir + "/log"); string(log) != want {
					t.Errorf("pauses and unpauses: %q, want %q", log, want)
				}
			}
			wantLog("p")
			host, hv := keptHost(dir)
			if err := hold.Release(t.Context(), hv.(keptHypervisor).records(), countedKinds, zap.NewNop()); err != nil {
				t.Error(err)
			}
			wantLog("pu")
			b := newBench(t, setup{onFake: host, options: func(o *Options) {
				o.Hypervisors, o.LockFile = []backend.Hypervisor{hv}, dir+"/lock"
			}})
			b.must(b.Snapshot(t.Context(), "web01", "s"))
			wantLog("pupu")
			if got := b.set("web01", "s").Consistency; got != backend.ConsistencyPaused {
				t.Errorf("consistency %s", got)
			}
			if left, _ := filepath.Glob(dir + "/held-*"); len(left) != 0 {
				t.Errorf("records are left: %q", left)
			}
		})
	}
}
