package lvm

import (
	"context"
	"errors"
	"math"
	"strconv"
	"strings"
	"time"

	"domfs/backend"
	"domfs/backend/devmapper"
)

// device is one device of device-mapper.
type device devmapper.Device

// deviceMapper is asked for the devices; it is a devmapper.Control.
type deviceMapper interface {
	Devices(ctx context.Context) ([]devmapper.Device, error)
	StatusOf(ctx context.Context, uuid string) (devmapper.Device, error)
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

// of is the device of an LV; nil while that is not active, or there is none.
func (d *devices) of(l *lv) *device {
	if d == nil || l == nil {
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

// readDevices asks device-mapper for all devices and their state. Neither waits for one that is suspended.
func (s *Store) readDevices(ctx context.Context) (*devices, error) {
	began := time.Now()
	found, err := s.mapper.Devices(ctx)
	if err != nil {
		return nil, err
	}
	status, err := s.runRead(ctx, "dmsetup", "status", "--noflush") // not s.mapper: see package devmapper
	if err != nil {
		return nil, toolFailed("ask device-mapper for the state of its devices", err)
	}
	d := indexDevices(found)
	if err := d.addStatus(status); err != nil {
		return nil, err
	}
	d.began = began
	s.noteInvalid(d)
	return d, nil
}

func indexDevices(found []devmapper.Device) *devices {
	d := &devices{byUUID: map[string]*device{}, byName: map[string]*device{}, byRdev: map[uint64]*device{}}
	for i := range found {
		v := (*device)(&found[i])
		d.byName[v.Name] = v
		d.byRdev[v.rdev()] = v
		if v.UUID != "" {
			d.byUUID[v.UUID] = v
		}
	}
	return d
}

// addStatus adds the targets that dmsetup status wrote.
func (d *devices) addStatus(status []byte) error {
	for line := range strings.Lines(string(status)) {
		name, rest, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		v := d.byName[name]
		if !ok || v == nil { // "No devices found"
			continue
		}
		fields := strings.SplitN(rest, " ", 4)
		if len(fields) < 3 {
			continue
		}
		start, err1 := strconv.ParseInt(fields[0], 10, 64)
		sectors, err2 := strconv.ParseInt(fields[1], 10, 64)
		if err := errors.Join(err1, err2); err != nil || start < 0 || sectors < 0 || start > maxSectors || sectors > maxSectors {
			return backend.Because(backend.ErrIO, "dmsetup status wrote %q", line)
		}
		t := devmapper.Target{StartBytes: start * sectorBytes, SizeBytes: sectors * sectorBytes, Type: fields[2]}
		if len(fields) == 4 {
			t.Status = fields[3]
		}
		v.Targets = append(v.Targets, t)
	}
	return nil
}

const maxSectors = math.MaxInt64 / sectorBytes
