// Package all is the list of the drivers that domfs is built with: one line each.
package all

import (
	"fmt"
	"slices"
	"time"

	"domfs/backend"
	"domfs/backend/format/qcow2"
	"domfs/backend/freeze"
	"domfs/backend/guest/blkid"
	"domfs/backend/guest/ext4"
	"domfs/backend/guest/lvm2"
	"domfs/backend/guest/part"
	"domfs/backend/hypervisor/xen"
	"domfs/backend/hypervisor/xlcfg"
	"domfs/backend/mapper/kpartx"
	"domfs/backend/mapper/loop"
	"domfs/backend/run"
	"domfs/backend/run/hold"
	"domfs/backend/store/image"
	"domfs/backend/store/lvm"
	"domfs/backend/store/phy"

	"go.uber.org/zap"
)

// Options are what the drivers are told at the start.
type Options struct {
	XLConfig  []string // xl's configuration files, and folders of them; none: xl's own places
	ImageDirs []string // folders of image files to show as stores beside those that disks lie in, and to follow backing files in
	LVM       LVM
	Freeze    Freeze
	// PauseTimeout is how long a domain may be kept paused; 0: the driver's own.
	PauseTimeout time.Duration
	// Records is what the paths of records begin with of what guests are kept in: paused, frozen.
	Records string
	Log     *zap.Logger
}

// Freeze are the commands that freeze and thaw guests; empty: guests are not frozen.
type Freeze struct {
	Freeze, Thaw string
	Timeout      time.Duration // for each
}

// Check says what of the options is wrong; ErrInvalid.
func (o Freeze) Check() error {
	switch {
	case (o.Freeze == "") != (o.Thaw == ""):
		return fmt.Errorf("--freeze-cmd and --thaw-cmd are given both or not at all: %w", backend.ErrInvalid)
	case o.Timeout < time.Second || o.Timeout > maxFreezeTimeout:
		return fmt.Errorf("--freeze-timeout: %s is not from 1s to %s: %w", o.Timeout, maxFreezeTimeout, backend.ErrInvalid)
	}
	return nil
}

// maxFreezeTimeout keeps a snapshot's deadline far off.
const maxFreezeTimeout = 2 * time.Minute

// maxPauseTimeout is far below what breaks a guest's connections, and the freezer's own deadline.
const maxPauseTimeout = 30 * time.Second

// CheckPauseTimeout says what is wrong with how long a domain may be kept paused; ErrInvalid.
func CheckPauseTimeout(d time.Duration) error {
	if d < time.Second || d > maxPauseTimeout {
		return fmt.Errorf("--pause-timeout: %s is not from 1s to %s: %w", d, maxPauseTimeout, backend.ErrInvalid)
	}
	return nil
}

// LVM are the options of the store lvm.
type LVM struct {
	VGs          []string // volume groups that it is restricted to; none: all
	SnapshotSize string   // of a thick snapshot, as its policy reads it: 20%, 10G; "" its default
}

// Check says what of the options is wrong; ErrInvalid.
func (o LVM) Check() error {
	if _, err := lvm.ParsePolicy(o.SnapshotSize); err != nil {
		return fmt.Errorf("--snapshot-size: %w", err)
	}
	if slices.Contains(o.VGs, "") {
		return fmt.Errorf("--vg: a volume group has a name: %w", backend.ErrInvalid)
	}
	return nil
}

// Hypervisors are the places where domains come from, those that know what runs before those that know what is
// configured. Xen is one of them where this host is Xen's domain 0 when the program starts; xenstored may be started later.
func Hypervisors(o Options) []backend.Hypervisor {
	paths := o.XLConfig
	if len(paths) == 0 {
		paths = xlcfg.DefaultPaths
	}
	var hs []backend.Hypervisor
	if xen.Available() {
		hs = append(hs, xen.New(xen.Options{Records: o.Records, PauseTimeout: o.PauseTimeout, Log: o.Log}))
	}
	return append(hs, xlcfg.New(paths, o.Log))
}

// Holds are the states of guests that a process of its own keeps.
func Holds(log *zap.Logger) hold.Kinds {
	runner := run.New(log)
	return hold.Kinds{
		xen.PauseKind: xen.NewPause(runner),
		freeze.Kind:   freeze.NewTask(runner),
	}
}

// Freezer freezes guests; nil where they are not to be.
func Freezer(o Options) backend.Freezer {
	if o.Freeze.Freeze == "" {
		return nil
	}
	return freeze.New(freeze.Options{
		Freeze: o.Freeze.Freeze, Thaw: o.Freeze.Thaw, Timeout: o.Freeze.Timeout,
		Holds: hold.Options{Runner: run.New(o.Log), Log: o.Log, Records: o.Records, Kinds: Holds(o.Log)},
	})
}

// Formats are the readers of volumes that are not raw.
func Formats() []backend.Format {
	return []backend.Format{
		qcow2.New(),
	}
}

// Stores are the places where volumes live, in the order in which they are asked whose
// a disk is.
func Stores(o Options) []backend.Store {
	return []backend.Store{
		lvm.New(lvm.Options{VGs: o.LVM.VGs, SnapshotSize: o.LVM.SnapshotSize, Formats: Formats(), Log: o.Log}),
		image.New(o.ImageDirs, Formats(), o.Log),
		phy.New(Formats(), o.Log),
	}
}

// Prober finds out what is on a volume.
func Prober() backend.Prober { return blkid.New() }

// Layouts are the readers of partition tables.
func Layouts() []backend.Layout {
	return []backend.Layout{
		part.New(),
	}
}

// Filesystems are the readers of guests' filesystems.
func Filesystems() []backend.Filesystem {
	return []backend.Filesystem{
		ext4.New(),
	}
}

// Assemblers find the volumes that lie over several devices of one guest.
func Assemblers() []backend.Assembler {
	return []backend.Assembler{
		lvm2.New(),
	}
}

// Mapper makes block devices of the host, by device-mapper where the host has it; nil where it cannot make any,
// with the reason.
func Mapper(o Options) (backend.Mapper, error) {
	noTables := kpartx.Available()
	if noTables == nil {
		return kpartx.New(o.Log), nil
	}
	if err := loop.Available(); err != nil {
		return nil, fmt.Errorf("%w; %w", noTables, err)
	}
	return loop.New(o.Log), nil
}
