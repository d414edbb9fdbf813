package devmapper

import (
	"bytes"
	"encoding/binary"
	"math"
	"unsafe"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

// The sizes of what an answer is put in. The kernel says when it does not fit.
const (
	firstBuffer = 16 << 10
	maxBuffer   = 64 << 20
)

// version is the oldest interface that has all that is asked for: the kernel's may be newer.
var version = [3]uint32{4, 0, 0}

const sectorBytes = 512

// query is the questions that are asked through one open control node, one after the other.
type query struct {
	fd     int
	buffer []byte
}

func openQuery(node string) (*query, error) {
	for {
		fd, err := unix.Open(node, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		return &query{fd: fd, buffer: make([]byte, firstBuffer)}, nil
	}
}

func (q *query) close() { unix.Close(q.fd) }

// header is the head of the buffer. A slice of at least 512 bytes that make has made is aligned for it.
func (q *query) header() *unix.DmIoctl {
	return (*unix.DmIoctl)(unsafe.Pointer(unsafe.SliceData(q.buffer)))
}

// ask fills in the header and asks, with a larger buffer if the answer does not fit. It returns the data of the answer.
func (q *query) ask(command uintptr, fill func(*unix.DmIoctl)) ([]byte, error) {
	for {
		clear(q.buffer) // kernels before 6.7 leave a byte of a long target's type as it was
		h := q.header()
		*h = unix.DmIoctl{Version: version, Data_size: uint32(len(q.buffer)), Data_start: unix.SizeofDmIoctl}
		fill(h)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(q.fd), command, uintptr(unsafe.Pointer(h)))
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return nil, errno
		case h.Flags&unix.DM_BUFFER_FULL_FLAG == 0:
			start, end := h.Data_start, min(h.Data_size, uint32(len(q.buffer)))
			if start > end {
				return nil, nil // no data
			}
			return q.buffer[start:end], nil
		case len(q.buffer) >= maxBuffer:
			return nil, backend.Because(backend.ErrUnsupported, "the answer has more than %d MiB", maxBuffer>>20)
		}
		q.buffer = make([]byte, 2*len(q.buffer))
	}
}

// all asks for each device, not for their targets. One that goes meanwhile is left out.
func (q *query) all() ([]Device, error) {
	data, err := q.ask(unix.DM_LIST_DEVICES, func(*unix.DmIoctl) {})
	if err != nil {
		return nil, err
	}
	numbers, err := parseNames(data)
	if err != nil {
		return nil, err
	}
	devices := make([]Device, 0, len(numbers))
	for _, number := range numbers {
		d, err := q.one(unix.DM_DEV_STATUS, number, "")
		if err == unix.ENXIO {
			continue
		}
		if err != nil {
			return nil, err
		}
		devices = append(devices, d)
	}
	return devices, nil
}

// one asks for the device of a number, or else of a UUID.
func (q *query) one(command uintptr, number uint64, uuid string) (Device, error) {
	if len(uuid) >= len(unix.DmIoctl{}.Uuid) {
		return Device{}, unix.ENXIO
	}
	data, err := q.ask(command, func(h *unix.DmIoctl) {
		h.Dev = number
		copy(h.Uuid[:], uuid)
		if command == unix.DM_TABLE_STATUS {
			h.Flags = unix.DM_NOFLUSH_FLAG
		}
	})
	if err != nil {
		return Device{}, err
	}
	h := q.header()
	d := Device{
		Name: text(h.Name[:]), UUID: text(h.Uuid[:]), Major: unix.Major(h.Dev), Minor: unix.Minor(h.Dev),
		Open: int(max(h.Open_count, 0)), Suspended: h.Flags&unix.DM_SUSPEND_FLAG != 0,
	}
	if command == unix.DM_TABLE_STATUS {
		d.Targets, err = parseTargets(data, h.Target_count)
	}
	return d, err
}

// text is a string that a NUL ends.
func text(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}

// wrong is the error of an answer that is not as the interface describes it.
func wrong(what string) error {
	return backend.Because(backend.ErrIO, "device-mapper's answer is not understood: %s", what)
}

// nameHead is what of a struct dm_name_list comes before the name: dev and next.
const nameHead = 8 + 4

// parseNames reads a list of struct dm_name_list: the numbers of all devices. next is counted from its own struct; the last has 0.
// Where there is no device the kernel says that there is no data.
func parseNames(data []byte) (numbers []uint64, err error) {
	for len(data) > 0 {
		if len(data) < nameHead {
			return nil, wrong("a device's name is cut off")
		}
		number, next := binary.NativeEndian.Uint64(data), binary.NativeEndian.Uint32(data[8:])
		if number == 0 { // as a list that is empty begins
			return numbers, nil
		}
		numbers = append(numbers, number)
		switch {
		case next == 0:
			return numbers, nil
		case next < nameHead || uint64(next) > uint64(len(data)):
			return nil, wrong("a device's name ends beyond the answer")
		}
		if data = data[next:]; len(data) == 0 {
			return nil, wrong("a device's name is missing")
		}
	}
	return nil, nil
}

// parseTargets reads count struct dm_target_spec, each with its status after it. next is counted from the first, and is a multiple of
// 8 bytes: that of the last one may be beyond the data.
func parseTargets(data []byte, count uint32) ([]Target, error) {
	if uint64(count) > uint64(len(data))/unix.SizeofDmTargetSpec {
		return nil, wrong("it has more targets than fit")
	}
	targets := make([]Target, 0, count)
	at := uint32(0)
	for range count {
		if uint64(at)+unix.SizeofDmTargetSpec > uint64(len(data)) {
			return nil, wrong("a target lies beyond the answer")
		}
		spec := data[at:]
		start, length, next := binary.NativeEndian.Uint64(spec), binary.NativeEndian.Uint64(spec[8:]), binary.NativeEndian.Uint32(spec[20:])
		if start > math.MaxInt64/sectorBytes || length > math.MaxInt64/sectorBytes {
			return nil, wrong("a target is too large")
		}
		if next < at || next-at < unix.SizeofDmTargetSpec {
			return nil, wrong("a target is too short")
		}
		end := int(min(uint64(next), uint64(len(data))))
		targets = append(targets, Target{
			StartBytes: int64(start) * sectorBytes, SizeBytes: int64(length) * sectorBytes,
			Type: text(spec[24:unix.SizeofDmTargetSpec]), Status: text(data[int(at)+unix.SizeofDmTargetSpec : end]),
		})
		at = next
	}
	return targets, nil
}
