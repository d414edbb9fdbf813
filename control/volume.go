package control

import (
	"context"

	"domfs/backend"
)

// VolumeRef says which volume of the tree is meant, stable over restarts: a disk of a
// domain (SetID empty) or of a snapshot set, and in it the partition numbers to descend by.
type VolumeRef struct {
	Domain string // the domain's name, for a live disk
	SetID  string
	VDev   string
	Path   string // "" the disk, "p1", "p1/p5"
}

// Volume is what the tree shows as a VOLUME: a disk, or a partition in one. It is open
// as long as it is acquired.
type Volume struct{}

// Volume opens a disk, or a partition in one, and acquires it: the caller must Release it.
// Volumes are cached: opening the same one again is cheap. A live volume whose Generation changed is
// opened anew. While a snapshot is filling it waits, until ctx ends.
func (h *Host) Volume(ctx context.Context, ref VolumeRef) (*Volume, error) { panic("skeleton") }

// Acquire takes another reference; false if the volume was closed or has changed
// underneath, and must be opened anew.
func (v *Volume) Acquire() bool { panic("skeleton") }

// Release gives one reference back. The last one lets the device be closed.
func (v *Volume) Release() { panic("skeleton") }

// Ref is what the volume was opened by.
func (v *Volume) Ref() VolumeRef { panic("skeleton") }

// Frozen tells whether the bytes can never change: a snapshot's.
func (v *Volume) Frozen() bool { panic("skeleton") }

// Running tells whether it is a live disk of a domain that runs (as of when it was opened): then it
// has no files.
func (v *Volume) Running() bool { panic("skeleton") }

// Device is the bytes.
func (v *Volume) Device() backend.Device { panic("skeleton") }

// Content says what is on it; probed once.
func (v *Volume) Content() (backend.Content, error) { panic("skeleton") }

// Parts lists the partitions, read once; none where Content is not a partition table or the
// depth is at its maximum. A live disk of a running domain has its partitions, too.
func (v *Volume) Parts() ([]backend.Part, error) { panic("skeleton") }

// HasFiles tells whether there is a filesystem driver for the Content and FS may be called.
func (v *Volume) HasFiles() bool { panic("skeleton") }

// FS opens the filesystem, once; it lives as long as the volume.
func (v *Volume) FS() (backend.FS, error) { panic("skeleton") }
