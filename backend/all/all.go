// Package all is the list of the drivers that domfs is built with: one line each.
package all

import (
	"fmt"
	"slices"

	"domfs/backend"
	"domfs/backend/format/qcow2"
	"domfs/backend/guest/blkid"
	"domfs/backend/guest/ext4"
	"domfs/backend/guest/lvm2"
	"domfs/backend/guest/part"
	"domfs/backend/hypervisor/xlcfg"
	"domfs/backend/mapper/kpartx"
	"domfs/backend/mapper/loop"
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
	Log       *zap.Logger
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

// Hypervisors are the places where domains come from.
func Hypervisors(o Options) []backend.Hypervisor {
	paths := o.XLConfig
	if len(paths) == 0 {
		paths = xlcfg.DefaultPaths
	}
	return []backend.Hypervisor{
		xlcfg.New(paths, o.Log),
	}
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
