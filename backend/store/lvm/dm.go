package lvm

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

// device is one device of device-mapper.
type device struct {
	name, uuid   string
	major, minor uint32
	open         int // how many have it open, the kernel's own users included
	suspended    bool
	targets      []target
}

// target is one line of a device's table, with its status.
type target struct {
	start, sectors int64
	kind           string // linear, snapshot, snapshot-origin, thin, thin-pool, …
	params         string
}

// devices are all of device-mapper's.
type devices struct {
	byUUID map[string]*device
	byName map[string]*device
	byRdev map[uint64]*device
	began  time.Time // when it was asked for
}

// dmUUID is the UUID of the LV's device in device-mapper; those of its layers (real, cow, tpool) have it with a
// hyphen and the layer's name after it (lib/activate/dev_manager.c of LVM2).
func (l *lv) dmUUID() string {
	return dmPrefix + strings.ReplaceAll(l.vg.uuid, "-", "") + strings.ReplaceAll(l.uuid, "-", "")
}

const dmPrefix = "LVM-"

// of is the device of an LV; nil while that is not active.
func (d *devices) of(l *lv) *device {
	if d == nil {
		return nil
	}
	return d.byUUID[l.dmUUID()]
}

// layer is a device below the LV's own.
func (d *devices) layer(l *lv, layer string) *device {
	if d == nil {
		return nil
	}
	return d.byUUID[l.dmUUID()+"-"+layer]
}

// infoArgs ask for all devices. The name is last, as others choose it.
func infoArgs() []string {
	return []string{"info", "-c", "--noheadings", "--nosuffix", "--separator", ":", "-o", "major,minor,open,suspended,uuid,name"}
}

// readDevices asks device-mapper for all devices. None of the tools waits for one that is suspended.
func (s *Store) readDevices(ctx context.Context) (*devices, error) {
	began := time.Now()
	info, err := s.runRead(ctx, "dmsetup", infoArgs()...)
	if err != nil {
		return nil, toolFailed("list the devices of device-mapper", err)
	}
	status, err := s.runRead(ctx, "dmsetup", "status", "--noflush")
	if err != nil {
		return nil, toolFailed("ask device-mapper for the state of its devices", err)
	}
	d, err := parseDevices(info, status)
	if err != nil {
		return nil, err
	}
	d.began = began
	s.noteInvalid(d)
	return d, nil
}

const maxDevices = 1 << 17

// parseDevices reads what dmsetup info and dmsetup status wrote.
func parseDevices(info, status []byte) (*devices, error) {
	d := &devices{byUUID: map[string]*device{}, byName: map[string]*device{}, byRdev: map[uint64]*device{}}
	for line := range strings.Lines(string(info)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 6)
		if len(fields) != 6 {
			continue // "No devices found"
		}
		major, err1 := strconv.ParseUint(fields[0], 10, 32)
		minor, err2 := strconv.ParseUint(fields[1], 10, 32)
		open, err3 := strconv.ParseUint(fields[2], 10, 31)
		if err := errors.Join(err1, err2, err3); err != nil {
			return nil, backend.Because(backend.ErrIO, "dmsetup info wrote %q: %w", line, err)
		}
		if len(d.byName) >= maxDevices {
			return nil, backend.Because(backend.ErrUnsupported, "device-mapper has more than %d devices", maxDevices)
		}
		v := &device{major: uint32(major), minor: uint32(minor), open: int(open), suspended: fields[3] == "Suspended", uuid: fields[4], name: fields[5]}
		d.byName[v.name] = v
		d.byRdev[unix.Mkdev(v.major, v.minor)] = v
		if v.uuid != "" {
			d.byUUID[v.uuid] = v
		}
	}
	for line := range strings.Lines(string(status)) {
		name, rest, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		v := d.byName[name]
		if !ok || v == nil {
			continue
		}
		if t, ok, err := parseTarget(rest); err != nil {
			return nil, err
		} else if ok {
			v.targets = append(v.targets, t)
		}
	}
	return d, nil
}

// parseTarget reads one target of a status, without its device's name; false if it is none.
func parseTarget(text string) (t target, ok bool, err error) {
	fields := strings.SplitN(text, " ", 4)
	if len(fields) < 3 {
		return t, false, nil
	}
	start, err1 := strconv.ParseInt(fields[0], 10, 64)
	sectors, err2 := strconv.ParseInt(fields[1], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return t, false, backend.Because(backend.ErrIO, "dmsetup status wrote %q: %w", text, err)
	}
	t = target{start: start, sectors: sectors, kind: fields[2]}
	if len(fields) == 4 {
		t.params = fields[3]
	}
	return t, true, nil
}
