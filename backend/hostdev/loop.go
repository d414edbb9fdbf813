package hostdev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"domfs/backend"
	"domfs/backend/proc"

	"golang.org/x/sys/unix"
)

const (
	loopControl = "/dev/loop-control"
	// loopTries is how often a loop device that was free is looked for: another process may be faster.
	loopTries = 32
	nodeWait  = 5 * time.Second
	nodePoll  = 2 * time.Millisecond
	// detachWait is for those that have a device open which is to go.
	detachWait = time.Second
	// maxDevices is how many block devices of the host are looked at.
	maxDevices = 1 << 16
	// MaxLoopName is the longest name that a loop device can be told by, in bytes.
	MaxLoopName = 63
)

// Loop is what a loop device shows of a file.
type Loop struct {
	Path          string // a regular file or a block device
	Offset, Bytes int64  // the range of it
	// Name is what the device is told by (lo_file_name, which losetup does not show).
	Name string
	// AutoClear makes it vanish when nobody has it open any more.
	AutoClear bool
}

// LoopAvailable says why the host has no loop devices, nil if it has.
func LoopAvailable() error {
	fd, err := unix.Open(loopControl, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed("open", loopControl, err)
	}
	unix.Close(fd)
	return nil
}

// Attach makes a read-only loop device, without looking for partitions on it. The device is open in the file that is returned,
// whose name is its path.
func (l Loop) Attach() (*os.File, error) {
	if len(l.Name) > MaxLoopName {
		return nil, fmt.Errorf("the loop device's name %s is longer than %d bytes: %w", l.Name, MaxLoopName, backend.ErrTooLong)
	}
	backing, err := os.OpenFile(l.Path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, failed("open", l.Path, err)
	}
	defer backing.Close()
	control, err := os.OpenFile(loopControl, os.O_RDWR, 0)
	if err != nil {
		return nil, failed("open", loopControl, err)
	}
	defer control.Close()
	config := unix.LoopConfig{Fd: uint32(backing.Fd())}
	config.Info.Offset, config.Info.Sizelimit = uint64(l.Offset), uint64(l.Bytes)
	config.Info.Flags = unix.LO_FLAGS_READ_ONLY
	if l.AutoClear {
		config.Info.Flags |= unix.LO_FLAGS_AUTOCLEAR
	}
	copy(config.Info.File_name[:], l.Name)
	for range loopTries {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, failed("find a free loop device by", loopControl, err)
		}
		path := "/dev/loop" + strconv.Itoa(number)
		device, err := openNode(path)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
		if err == nil {
			return device, nil
		}
		device.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, failed("attach "+l.Path+" to", path, err)
		}
	}
	return nil, fmt.Errorf("others take each loop device that is free before it can be used: %w", backend.ErrBusy)
}

// openNode opens a device whose node may still have to be made.
func openNode(path string) (*os.File, error) {
	for end := time.Now().Add(nodeWait); ; time.Sleep(nodePoll) {
		f, err := os.OpenFile(path, os.O_RDONLY, 0)
		if err == nil {
			return f, nil
		}
		waitable := errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENXIO)
		if !waitable || time.Now().After(end) {
			return nil, failed("open", path, err)
		}
	}
}

// AttachedLoop is a loop device that is in use.
type AttachedLoop struct {
	Device string // /dev/loop3
	Rdev   uint64
	Name   string // Loop.Name; of a device that another program made, the path that it was given
	// Offset and SizeLimit are the range of the backing file, in bytes; a limit of 0 is none.
	Offset, SizeLimit int64
	ReadOnly          bool
}

// Loops lists the loop devices in use whose name begins with prefix.
func (h Host) Loops(prefix string) []AttachedLoop {
	var out []AttachedLoop
	for _, kernel := range proc.List(h.sys("block"), maxDevices) {
		if !strings.HasPrefix(kernel, "loop") {
			continue
		}
		if _, err := os.Stat(h.sys("block", kernel, "loop/backing_file")); err != nil {
			continue
		}
		if l, ok := loopStatus("/dev/" + kernel); ok && strings.HasPrefix(l.Name, prefix) {
			out = append(out, l)
		}
	}
	return out
}

func loopStatus(path string) (AttachedLoop, bool) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return AttachedLoop{}, false
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return AttachedLoop{}, false // it was detached meanwhile
	}
	rdev, err := Rdev(path)
	if err != nil {
		return AttachedLoop{}, false
	}
	return AttachedLoop{Device: path, Rdev: rdev, Name: unix.ByteSliceToString(info.File_name[:]), Offset: int64(info.Offset),
		SizeLimit: int64(info.Sizelimit), ReadOnly: info.Flags&unix.LO_FLAGS_READ_ONLY != 0}, true
}

// Detach frees a loop device that Attach made under this name; one that was freed meanwhile is no error. The
// kernel frees one that is open as soon as it is closed: Detach waits for that a moment, as udev or whoever lists devices has
// one open that long, and leaves it to the kernel then.
func Detach(device, name string) error {
	if err := detach(device, name); err != nil {
		return err
	}
	for end := time.Now().Add(detachWait); time.Now().Before(end); time.Sleep(nodePoll) {
		if l, attached := loopStatus(device); !attached || l.Name != name {
			break
		}
	}
	return nil
}

func detach(device, name string) error {
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENXIO) {
			return nil
		}
		return failed("open", device, err)
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if errors.Is(err, unix.ENXIO) || err == nil && unix.ByteSliceToString(info.File_name[:]) != name {
		return nil
	}
	if err == nil {
		err = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
	}
	if err != nil && !errors.Is(err, unix.ENXIO) {
		return failed("detach", device, err)
	}
	return nil
}

// IsAttached tells whether the loop device of this kernel's name (loop3) is in use.
func (h Host) IsAttached(kernel string) bool {
	_, err := os.Stat(filepath.Join(h.sys("block", kernel), "loop/backing_file"))
	return err == nil
}
