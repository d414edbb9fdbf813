package kpartx

import (
	"os"
	"strings"

	"domfs/backend"
	"domfs/backend/hostdev"

	"golang.org/x/sys/unix"
)

// hasLabel tells whether LVM could take a part of a disk for a physical volume.
func (j *job) hasLabel(d backend.MapDisk, start, length int64) (bool, error) {
	f := j.opened[d.Path]
	if f == nil {
		var err error
		if f, err = os.OpenFile(d.Path, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
			return false, diskFailure(d.Path, err)
		}
		j.opened[d.Path] = f
	}
	return hostdev.HasPVLabel(f, start, length)
}

// mustHide tells whether the host's LVM must not see a part of a disk. Where that cannot be found out, it
// must not.
func (j *job) mustHide(d backend.MapDisk, start, length int64) bool {
	label, err := j.hasLabel(d, start, length)
	return label || err != nil
}

// mustHideVolume is mustHide of a guest's volume: a guest can put a physical volume on one, too.
func (j *job) mustHideVolume(v backend.MapVolume) bool {
	if len(v.Segments) == 0 || len(v.Segments[0].Targets) == 0 {
		return true
	}
	s := v.Segments[0]
	if s.Length < hostdev.LabelBytes || len(s.Targets) > 1 && s.StripeBytes < hostdev.LabelBytes {
		return true // the label's places are not in one run
	}
	vdev, name, _ := strings.Cut(s.Targets[0].Member, "/")
	for _, d := range j.r.Disks {
		if d.VDev != vdev {
			continue
		}
		if name == "" {
			return j.mustHide(d, s.Targets[0].Offset, hostdev.LabelBytes)
		}
		for _, p := range d.Parts {
			if p.Name == name && inDisk(p, d) {
				return j.mustHide(d, p.Start+s.Targets[0].Offset, hostdev.LabelBytes)
			}
		}
	}
	return true
}
