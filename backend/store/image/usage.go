package image

import (
	"encoding/binary"
	"errors"
	"slices"
	"time"
	"unsafe"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

// Looking for shared extents walks through a copy's extents, and snapshots are listed
// several times a second.
const (
	usageEvery   = 3 * time.Second       // between two looks at a copy
	usageRest    = 20                    // a look that took long is followed by that many times as long without
	usageBudget  = 20 * time.Millisecond // for what one listing may look at
	maxUsages    = 1 << 16               // copies that are remembered
	maxExtents   = 1 << 16               // looked at in one copy; what follows counts as its own
	fiemapExtent = 512                   // extents asked for at once
)

// FIEMAP, by the kernel's Documentation/filesystems/fiemap.rst and linux/fiemap.h.
const (
	fsIocFiemap    = 0xc020660b // _IOWR('f', 11, struct fiemap)
	fiemapLast     = 0x1
	fiemapShared   = 0x2000
	fiemapHeadSize = 32
	fiemapItemSize = 56
)

// usage is what was found when a copy was last looked at.
type usage struct {
	sharedBytes int64
	due         time.Time // when it is to be looked at again; zero: never
}

// usageLook is a copy in a listing that may share space with others.
type usageLook struct {
	index   int // in the listing
	m       member
	version fileVersion
	due     time.Time
}

// subtractShared takes from the UsedBytes of copies what they share with other files.
// Those that are due are looked at, the longest overdue first and at least one, until the
// budget is spent; of the others what was found last counts.
func (s *Store) subtractShared(snaps []backend.Snapshot, looks []usageLook) {
	s.looking.Lock()
	defer s.looking.Unlock()
	now := time.Now()
	s.mu.Lock()
	var due []*usageLook
	for i := range looks {
		u, known := s.usages[looks[i].version]
		looks[i].due = u.due
		if !known || !u.due.IsZero() && now.After(u.due) {
			due = append(due, &looks[i])
		}
	}
	s.mu.Unlock()
	slices.SortStableFunc(due, func(a, b *usageLook) int { return a.due.Compare(b.due) })
	for _, l := range due {
		s.lookAtUsage(l)
		if time.Since(now) > s.usageBudget {
			break
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range looks {
		used := &snaps[l.index].UsedBytes
		*used = max(*used-s.usages[l.version].sharedBytes, 0)
	}
}

func (s *Store) lookAtUsage(l *usageLook) {
	began := time.Now()
	var u usage
	f, st, err := s.openCopy(l.m, unix.O_RDONLY)
	if err == nil {
		defer f.Close()
		if versionOf(st) != l.version {
			return // replaced meanwhile
		}
		err = control(f, func(fd int) (err error) {
			u.sharedBytes, err = sharedBytes(fd)
			return err
		})
	}
	// What shares nothing never will: nobody but a snapshot is given a copy's blocks. Nor
	// will a filesystem learn to tell.
	if u.sharedBytes > 0 || err != nil && !cannotClone(err) {
		u.due = time.Now().Add(max(usageEvery, usageRest*time.Since(began)))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.usages) >= maxUsages {
		clear(s.usages)
	}
	s.usages[l.version] = u
}

// sharedBytes counts the bytes of an open file that lie in extents which other files have, too.
func sharedBytes(fd int) (int64, error) {
	var shared int64
	buf := make([]byte, fiemapHeadSize+fiemapExtent*fiemapItemSize)
	at := uint64(0)
	for seen := 0; seen < maxExtents; {
		clear(buf[:fiemapHeadSize])
		binary.NativeEndian.PutUint64(buf[0:], at)
		binary.NativeEndian.PutUint64(buf[8:], ^uint64(0)-at)
		binary.NativeEndian.PutUint32(buf[24:], fiemapExtent)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fsIocFiemap, uintptr(unsafe.Pointer(&buf[0])))
		if errno != 0 {
			return 0, errno
		}
		count := min(int(binary.NativeEndian.Uint32(buf[20:])), fiemapExtent)
		if count == 0 {
			return shared, nil
		}
		for i := range count {
			item := buf[fiemapHeadSize+i*fiemapItemSize:]
			logical, length := binary.NativeEndian.Uint64(item), binary.NativeEndian.Uint64(item[16:])
			flags := binary.NativeEndian.Uint32(item[40:])
			end := logical + length
			if end <= at {
				return shared, errors.New("extents do not go forward")
			}
			if flags&fiemapShared != 0 {
				shared += int64(length)
			}
			at = end
			if flags&fiemapLast != 0 {
				return shared, nil
			}
		}
		seen += count
	}
	return shared, nil
}
