package lvm

import (
	"context"
	"os"
	"time"
	"unsafe"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

// zeroStep is how much is zeroed by one system call, which nothing can end: a disk of 20 MB/s needs some seconds for it.
const zeroStep = 64 << 20

// A disk that zeroes less than zeroRate bytes a second is not waited for.
const (
	zeroRate  = 1 << 20
	zeroGrace = time.Minute
)

// zero has the first size bytes of a block device, which is all of it, read as zeroes, durably. The kernel has the disk do it
// where that can, and writes zeroes where not (BLKZEROOUT, linux/fs.h): of no use is a discard, after which some disks give back what
// was there.
func zero(ctx context.Context, f *os.File, size int64, progress func(done, total int64)) error {
	ctx, cancel := context.WithTimeout(ctx, zeroGrace+time.Duration(size/zeroRate)*time.Second)
	defer cancel()
	for done := int64(0); done < size; {
		if ctx.Err() != nil {
			return ctxError(ctx)
		}
		span := [2]uint64{uint64(done), uint64(min(zeroStep, size-done))}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&span)))
		switch errno {
		case 0:
			done += int64(span[1])
			if progress != nil {
				progress(done, size)
			}
		case unix.EINTR:
		default:
			return words.Failed("write zeroes to", f.Name(), errno)
		}
	}
	if err := f.Sync(); err != nil { // what the disk has in its cache
		return words.Failed("write zeroes to", f.Name(), err)
	}
	return nil
}

// endBytes is how much of both ends of a device is looked at to tell whether anybody has used it: filesystems, partition tables and
// whatever else holds data begin, or end, there.
const endBytes = 1 << 20

// isUntouched tells whether both ends of a device are zero.
func isUntouched(d backend.Device) (bool, error) {
	n := min(d.Size(), endBytes)
	b := make([]byte, n)
	for _, off := range []int64{0, d.Size() - n} {
		if got, err := d.ReadAt(b, off); int64(got) < n {
			return false, err
		}
		for _, c := range b {
			if c != 0 {
				return false, nil
			}
		}
	}
	return true, nil
}
