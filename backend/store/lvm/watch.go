package lvm

import (
	"context"
	"time"
	"unsafe"

	"domfs/backend"
	"domfs/backend/devmapper"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// The version of device-mapper's interface whose control node can be waited on (include/uapi/linux/dm-ioctl.h,
// DM_DEV_ARM_POLL; Linux 4.14).
var pollVersion = [3]uint32{4, 37, 0}

// settleEvents is how long further events are awaited after one: a change of LVM's raises a dozen.
const settleEvents = 20 * time.Millisecond

// Watch implements backend.Watcher with device-mapper's events: a snapshot became invalid, a pool went
// below its low water mark, ran full or read-only, a device was made, changed or removed. The fill of a thick snapshot
// raises none before it is invalid: whoever wants to know asks now and then.
//
// Open snapshots that are found invalid fail their reads before changed is called. On a host that has no LVM, or on which
// we may not talk to device-mapper, there is nothing to watch: ErrUnsupported.
func (s *Store) Watch(ctx context.Context, changed func()) error {
	if err := s.absent(); err != nil {
		return backend.Because(backend.ErrUnsupported, "no snapshots of LVM are watched: %w", err)
	}
	control, err := unix.Open(s.control, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return words.Failed("watch", s.control, err)
	}
	defer unix.Close(control)
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return words.Failed("watch", s.control, err)
	}
	defer unix.Close(stop)
	released := make(chan struct{})
	defer func() { <-released }()
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		defer close(released)
		select {
		case <-ctx.Done():
			unix.Write(stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		case <-ended:
		}
	}()
	if err := s.arm(control); err != nil {
		return err
	}
	changed() // what has happened before is not going to be told
	for {
		fds := []unix.PollFd{{Fd: int32(control), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return words.Failed("watch", s.control, err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if fds[0].Revents&^unix.POLLIN != 0 {
			return backend.Because(backend.ErrIO, "watch %s: it cannot be waited on any more", s.control)
		}
		if fds[0].Revents == 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(settleEvents):
		}
		// Armed before it is asked what happened: a further event wakes the next poll.
		if err := s.arm(control); err != nil {
			return err
		}
		// LVM's commands raise many events: none of ours is run where no open snapshot can have become invalid.
		if s.anyOpen() {
			if _, err := s.readDevices(ctx); err != nil && ctx.Err() == nil {
				if !s.remember(err) {
					s.log.Warn("device-mapper reported a change, and does not say of what", zap.Error(err))
				}
			}
		}
		if err := s.absent(); err != nil {
			return backend.Because(backend.ErrUnsupported, "no snapshots of LVM are watched: %w", err)
		}
		changed()
	}
}

// armPoll makes the control node readable from the next event on.
func armPoll(control int) error {
	arg := unix.DmIoctl{Version: pollVersion}
	arg.Data_size = uint32(unsafe.Sizeof(arg))
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(control), unix.DM_DEV_ARM_POLL, uintptr(unsafe.Pointer(&arg)))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			continue
		case unix.EINVAL, unix.ENOTTY:
			return backend.Because(backend.ErrUnsupported, "this kernel's device-mapper cannot be waited on: it is older than Linux 4.14")
		}
		return words.Failed("wait on", devmapper.Node, errno)
	}
}
