package xen

import (
	"bytes"
	"context"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"domfs/backend"
	"domfs/backend/hypervisor/xen/xenstore"
	"domfs/backend/run"
	"domfs/backend/run/hold"

	"go.uber.org/zap"
)

var (
	_ backend.Hypervisor = (*Driver)(nil)
	_ backend.Watcher    = (*Driver)(nil)
)

// Options are what a Driver is made of.
type Options struct {
	// Socket is xenstored's socket, or the kernel's device for it; "": the first of xenstore.DefaultPaths that
	// is there.
	Socket string
	Runner *run.Runner // runs xl; nil: the host's
	Log    *zap.Logger // may be nil
	// Records is what the paths of records of paused domains begin with; "": DefaultRecords.
	Records string
	// PauseTimeout is how long callers keep a domain paused, at most; 0: DefaultPauseTimeout.
	PauseTimeout time.Duration
}

// Driver lists the domains that exist on this host, of which it is domain 0.
type Driver struct {
	store *xenstore.Client
	run   *run.Runner
	log   *zap.Logger
	gap   time.Duration // of Watch
	stat  func(path string) (number uint64, isBlock bool)
	xl    func(ctx context.Context) ([]byte, error) // lists
	hangs atomic.Uint32                             // how often that has hung, one time after the other

	holds     hold.Options  // for pauses
	pauseHold time.Duration // from when xl is told to pause a domain until it is resumed, whatever anybody says
	toolstack string        // the program xl, for changes
	writer    string        // the program xenstore-write
	sysfs     string
}

// New makes a Driver. It connects to xenstored when it is first asked, and again whenever the connection was lost.
func New(o Options) *Driver {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.Runner == nil {
		o.Runner = run.New(o.Log)
	}
	var paths []string
	if o.Socket != "" {
		paths = []string{o.Socket}
	}
	d := &Driver{store: xenstore.New(xenstore.Options{Paths: paths}), run: o.Runner, log: o.Log, gap: watchGap, stat: blockNumber}
	d.xl = func(ctx context.Context) ([]byte, error) { return d.run.Run(ctx, "xl", "list") }
	if o.PauseTimeout == 0 {
		o.PauseTimeout = DefaultPauseTimeout
	}
	d.pauseHold = o.PauseTimeout + pauseGrace
	if o.Records == "" {
		o.Records = DefaultRecords
	}
	d.holds = hold.Options{Runner: o.Runner, Log: o.Log, Records: o.Records, Kinds: hold.Kinds{PauseKind: NewPause(o.Runner)}}
	d.toolstack, d.writer, d.sysfs = "xl", "xenstore-write", "/sys"
	return d
}

// Name is "xen".
func (d *Driver) Name() string { return "xen" }

// read is the value of the node at path; ErrNotExist where there is none. Read nothing that a guest may write.
func (d *Driver) read(ctx context.Context, path string) (string, error) {
	return d.store.Read(ctx, path)
}

// list are the names of the nodes below path; ErrNotExist where there is none.
func (d *Driver) list(ctx context.Context, path string) ([]string, error) {
	return d.store.Directory(ctx, path)
}

// Available tells whether this host is one of Xen's, where domains may run now or later: xenstored's socket is there, or
// the kernel is that of domain 0, in which xenstored may be started yet. A guest of Xen is no such host.
func Available() bool { return available("/") }

// dom0Feature is the bit of XENFEAT_dom0 in sysfs's hypervisor/properties/features.
const dom0Feature = 11

func available(root string) bool {
	for _, path := range xenstore.DefaultPaths {
		if info, err := os.Stat(root + path); err == nil && info.Mode().Type() == os.ModeSocket {
			return true
		}
	}
	if b, err := os.ReadFile(root + "/sys/hypervisor/properties/features"); err == nil {
		if bits, err := strconv.ParseUint(strings.TrimSpace(string(b)), 16, 64); err == nil && bits&(1<<dom0Feature) != 0 {
			return true
		}
	}
	b, err := os.ReadFile(root + "/proc/xen/capabilities")
	return err == nil && bytes.Contains(b, []byte("control_d"))
}
