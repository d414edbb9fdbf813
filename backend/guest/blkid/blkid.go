package blkid

import (
	"fmt"

	"domfs/backend"
)

// New makes a Prober.
func New() backend.Prober { return prober{} }

type prober struct{}

// usage is what a signature says that the device is for.
type usage int

const (
	filesystem usage = iota
	raid             // a part of something larger; tables seen on it belong to that
	crypto
	other
)

// signature is one thing that can be on a device.
type signature struct {
	name     string
	usage    usage
	minBytes int64
	// tolerant signatures may share the device with another tolerant one (ISO 9660 with UDF).
	tolerant bool
	// wiped is how many bytes at the start of the device its tool clears: a partition
	// table there is newer.
	wiped int64
	// probe fills in label and UUID.
	probe func(r *reader) (backend.Content, bool)
}

// signatures in order of precedence, which is libblkid's.
var signatures = []signature{
	{name: "linux_raid_member", usage: raid, probe: probeMD},

	{name: "bcache", usage: other, minBytes: 8192, wiped: 4096, probe: probeBcache},
	{name: "LVM2_member", usage: raid, wiped: 8192, probe: probeLVM2},
	{name: "LVM1_member", usage: raid, probe: probeLVM1},
	{name: "DM_snapshot_cow", usage: other, probe: probeSnapshotCOW},
	{name: "DM_verity_hash", usage: crypto, probe: probeVerity},
	{name: "DM_integrity", usage: crypto, probe: probeIntegrity},
	{name: "crypto_LUKS", usage: crypto, probe: probeLUKS},
	{name: "BitLocker", usage: crypto, probe: probeBitLocker},

	{name: "vfat", probe: probeVFAT},
	{name: "swsuspend", usage: other, minBytes: minSwapBytes, probe: probeSuspend},
	{name: "swap", usage: other, minBytes: minSwapBytes, probe: probeSwap},
	{name: "xfs", probe: probeXFS},
	{name: "ext4dev", probe: extProbe("ext4dev")},
	{name: "ext4", probe: extProbe("ext4")},
	{name: "ext3", probe: extProbe("ext3")},
	{name: "ext2", probe: extProbe("ext2")},
	{name: "jbd", usage: other, probe: extProbe("jbd")},
	{name: "reiserfs", minBytes: 128 << 10, probe: probeReiserFS},
	{name: "reiser4", minBytes: 128 << 10, probe: probeReiser4},
	{name: "jfs", minBytes: 16 << 20, probe: probeJFS},
	{name: "udf", tolerant: true, probe: probeUDF},
	{name: "iso9660", tolerant: true, probe: probeISO9660},
	{name: "zfs_member", minBytes: 64 << 20, probe: probeZFS},
	{name: "ntfs", probe: probeNTFS},
	{name: "squashfs", probe: probeSquashfs},
	{name: "squashfs3", probe: probeSquashfs3},
	{name: "btrfs", minBytes: 1 << 20, probe: probeBtrfs},
	{name: "nilfs2", minBytes: 1 << 20, probe: probeNILFS2},
	{name: "exfat", probe: probeExFAT},
	{name: "f2fs", probe: probeF2FS},
	{name: "erofs", probe: probeEROFS},
}

const (
	// tinyBytes is a floppy disk: no RAID, and the first filesystem found is it.
	tinyBytes = 1440 << 10
	// stubBytes is the size of the stub that the kernel makes of an extended partition: too
	// small for anything, and the table in it describes partitions of the disk around it.
	stubBytes = 1024
)

// Probe finds out what is on d. What blkid would call ambiguous is unknown.
func (prober) Probe(d backend.Device) (backend.Content, error) {
	if d.Size() <= stubBytes {
		return backend.Content{}, nil
	}
	r := newReader(d)
	c, sig, ambiguous := probeSignatures(r)
	if r.err == nil && !ambiguous && (sig == nil || sig.usage != raid || sig.wiped > 0) {
		c = probeTables(r, c, sig)
	}
	if r.err != nil {
		return backend.Content{}, fmt.Errorf("read the device to find out what is on it: %w", r.err)
	}
	if ambiguous {
		return backend.Content{}, nil
	}
	return c, nil
}

// probeSignatures finds the filesystem or container on a device, nil if there is none.
func probeSignatures(r *reader) (first backend.Content, sig *signature, ambiguous bool) {
	tiny := r.size <= tinyBytes
	found, intolerant := 0, 0
	for i := range signatures {
		s := &signatures[i]
		if r.size < s.minBytes || tiny && s.usage == raid {
			continue
		}
		c, ok := s.probe(r)
		if r.err != nil {
			return backend.Content{}, nil, false
		}
		if !ok {
			continue
		}
		c.Type = s.name
		found++
		if found == 1 {
			first, sig = c, s
			if tiny {
				break
			}
		}
		if s.usage == raid || s.usage == crypto {
			break // what lies inside of a container is no concern of this device
		}
		if !s.tolerant {
			intolerant++
		}
	}
	return first, sig, found > 1 && intolerant > 0
}

// probeTables looks for a partition table on a device where c was found, by sig if that
// is not nil, and returns which of both it is.
func probeTables(r *reader, c backend.Content, sig *signature) backend.Content {
	t, off, ok := probeTable(r, sig)
	if !ok || sig != nil && off >= sig.wiped {
		return c
	}
	return t
}
