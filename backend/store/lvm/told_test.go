package lvm

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"domfs/backend/devmapper"
	"domfs/backend/run"
)

// told is a deviceMapper that answers with what dmsetup, in a transcript, told of a host.
type told struct{ run *run.Runner }

var (
	toldInfo   = []string{"dmsetup", "info", "-c", "--noheadings", "--nosuffix", "--separator", ":", "-o", "major,minor,open,suspended,uuid,name"}
	toldStatus = []string{"dmsetup", "status", "--noflush"}
)

func (m told) Devices(ctx context.Context) ([]devmapper.Device, error) {
	info, err := m.run.Run(ctx, toldInfo[0], toldInfo[1:]...)
	if err != nil {
		return nil, err
	}
	return toldDevices(string(info)), nil
}

func (m told) StatusOf(ctx context.Context, uuid string) (devmapper.Device, error) {
	status, err := m.run.Run(ctx, toldStatus[0], append(toldStatus[1:], "--uuid", uuid)...)
	if err != nil {
		return devmapper.Device{}, err
	}
	d := indexDevices([]devmapper.Device{{Name: "asked for", UUID: uuid}})
	for line := range strings.Lines(strings.TrimSpace(string(status))) {
		if err := d.addStatus([]byte("asked for: " + line)); err != nil {
			return devmapper.Device{}, err
		}
	}
	return devmapper.Device(*d.byUUID[uuid]), nil
}

// devicesOf are the devices of dmsetup info and dmsetup status.
func devicesOf(t testing.TB, info, status string) *devices {
	t.Helper()
	d := indexDevices(toldDevices(info))
	if err := d.addStatus([]byte(status)); err != nil {
		t.Fatal(err)
	}
	return d
}

// toldDevices panics where the transcript is not what dmsetup writes.
func toldDevices(info string) (devices []devmapper.Device) {
	for line := range strings.Lines(info) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 6)
		number := func(text string) uint32 {
			n, err := strconv.ParseUint(text, 10, 31)
			if err != nil {
				panic(fmt.Sprintf("%q: %v", line, err))
			}
			return uint32(n)
		}
		devices = append(devices, devmapper.Device{Major: number(f[0]), Minor: number(f[1]), Open: int(number(f[2])), Suspended: f[3] == "Suspended", UUID: f[4], Name: f[5]})
	}
	return devices
}
