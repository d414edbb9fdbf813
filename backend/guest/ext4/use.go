package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"domfs/backend"
)

var _ backend.UseTeller = Driver{}

// mmpClean is the sequence number of a filesystem that no kernel has mounted, in the block of the feature mmp
// (Documentation/filesystems/ext4/mmp.rst).
const (
	mmpClean = 0xff4d4d50
	mmpMagic = 0x004d4d50
)

// Use implements backend.UseTeller. A kernel that mounts the filesystem for writing sets needs_recovery where there is a
// journal, and else takes the mark of a clean unmount away, before anything else is written; the unmount puts it
// back. Who mounts it read-only changes nothing, but with the feature mmp.
func (Driver) Use(d backend.Device) (backend.Use, string, error) {
	b := make([]byte, superBytes)
	if n, err := d.ReadAt(b, superOffset); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			return backend.UseUnknown, "is cut off", nil
		}
		return backend.UseUnknown, "", fmt.Errorf("ext4: superblock: %w", err)
	}
	sb, err := parseSuper(b)
	switch {
	case err != nil:
		return backend.UseUnknown, "has a superblock that is damaged or not understood", nil
	case sb.incompat&incompatRecover != 0:
		return backend.InUse, "is mounted, or was not unmounted cleanly: its journal is not empty", nil
	case sb.state&stateClean == 0:
		return backend.InUse, "is mounted, or was not unmounted cleanly", nil
	case sb.incompat&incompatMMP != 0:
		return mmpUse(d, sb, binary.LittleEndian.Uint64(b[0x168:]))
	}
	return backend.Unused, "", nil
}

// mmpUse reads the block in which whoever has the filesystem mounted says so again and again.
func mmpUse(d backend.Device, sb *super, block uint64) (backend.Use, string, error) {
	if !sb.validRun(block, 1) {
		return backend.UseUnknown, "has no block where it says that it is mounted (mmp)", nil
	}
	b := make([]byte, 8)
	if n, err := d.ReadAt(b, int64(block)<<sb.blockBits); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			return backend.UseUnknown, "is cut off", nil
		}
		return backend.UseUnknown, "", fmt.Errorf("ext4: block %d (mmp): %w", block, err)
	}
	switch magic, sequence := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:]); {
	case magic != mmpMagic:
		return backend.UseUnknown, "has a damaged block where it says that it is mounted (mmp)", nil
	case sequence != mmpClean:
		return backend.InUse, "is mounted or being checked, or was not unmounted cleanly (mmp)", nil
	}
	return backend.Unused, "", nil
}
