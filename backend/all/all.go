// Package all is the list of the drivers that domfs is built with: one line each.
package all

import (
	"domfs/backend"
	"domfs/backend/format/qcow2"
	"domfs/backend/guest/blkid"
	"domfs/backend/guest/ext4"
	"domfs/backend/guest/part"
	"domfs/backend/hypervisor/xlcfg"
	"domfs/backend/store/image"
	"domfs/backend/store/phy"

	"go.uber.org/zap"
)

// Options are what the drivers are told at the start.
type Options struct {
	XLConfig  []string // xl's configuration files, and folders of them; none: xl's own places
	ImageDirs []string // folders of image files to show as stores beside those that disks lie in, and to follow backing files in
	Log       *zap.Logger
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
