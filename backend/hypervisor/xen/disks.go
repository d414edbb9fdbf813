package xen

import (
	"context"
	"errors"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"domfs/backend"
)

const maxDisks = 256 // of one domain

// The kinds of devices that are disks, as they are named below /libxl/<domid>/device.
var diskKinds = []string{"vbd", "virtio_disk"}

// backendKinds are those of the backends that serve disks.
var backendKinds = []string{"vbd", "qdisk", "virtio_disk", "tap"}

var vdevSyntax = regexp.MustCompile(`^[a-z][a-z0-9]{0,31}$|^[0-9]{1,9}$|^0x[0-9a-fA-F]{1,8}$`)

// stateClosed is XenbusStateClosed.
const stateClosed = 6

// diskReader reads the disks of one domain.
type diskReader struct {
	d    *Driver
	r    reader
	id   int
	warn func(format string, args ...any)
	fail func(sentinel error, format string, args ...any)
}

func (k *diskReader) read(ctx context.Context) ([]backend.Disk, error) {
	var disks []backend.Disk
	seen := map[string]bool{}
	for _, kind := range diskKinds {
		dir := "/libxl/" + strconv.Itoa(k.id) + "/device/" + kind
		names, err := k.r.Directory(ctx, dir)
		if errors.Is(err, backend.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var devids []int
		for _, name := range names {
			if devid, ok := number(name, 1<<31-1); ok {
				devids = append(devids, devid)
			}
		}
		slices.Sort(devids)
		for _, devid := range devids {
			disk, err := k.disk(ctx, dir+"/"+strconv.Itoa(devid), devid)
			if err != nil && !errors.Is(err, backend.ErrNotExist) {
				return nil, err
			}
			if err != nil || disk == nil {
				continue // it goes or comes, or is not trusted
			}
			if seen[disk.VDev] {
				k.fail(backend.ErrExist, "it has two disks %s, of which one is left out", disk.VDev)
				continue
			}
			if len(disks) == maxDisks {
				k.fail(backend.ErrInvalid, "it has more than %d disks; the rest is left out", maxDisks)
				return disks, nil
			}
			seen[disk.VDev] = true
			disks = append(disks, *disk)
		}
	}
	return disks, nil
}

// value reads one of the values of a device; "" where there is none.
func (k *diskReader) value(ctx context.Context, dir, name string) (string, error) {
	return optional(k.r.Read(ctx, dir+"/"+name))
}

// disk reads the disk that the toolstack describes in dir. nil for one that is closed, or not trusted.
func (k *diskReader) disk(ctx context.Context, dir string, devid int) (*backend.Disk, error) {
	ok, err := guarded(ctx, k.r, dir, 0)
	if err != nil {
		return nil, err
	}
	if !ok {
		k.fail(backend.ErrPermission, "others than domain 0 may write %s, so that its disk is left out", dir)
		return nil, nil
	}
	v := map[string]string{}
	for _, name := range []string{"backend", "dev", "type", "params", "tapdisk-params", "mode", "device-type", "script"} {
		if v[name], err = k.value(ctx, dir, name); err != nil {
			return nil, err
		}
	}
	if v["backend"] == "" || v["dev"] == "" {
		return nil, nil // one that is being removed loses its nodes one by one
	}
	if !vdevSyntax.MatchString(v["dev"]) {
		k.fail(backend.ErrInvalid, "%.80q is no name of a disk (%s)", v["dev"], dir)
		return nil, nil
	}
	server, ok := k.serverOf(v["backend"], devid)
	if !ok {
		k.fail(backend.ErrCorrupt, "disk %s: %.200q is not the directory of its backend", v["dev"], v["backend"])
		return nil, nil
	}
	disk := &backend.Disk{VDev: v["dev"], Mode: backend.ReadOnly, CDROM: v["device-type"] == "cdrom"}
	if strings.HasPrefix(v["mode"], "w") && !disk.CDROM {
		disk.Mode = backend.ReadWrite
	}
	if server != 0 {
		if disk.BackendDomain, err = k.domainName(ctx, server); err != nil {
			return nil, err
		}
	}
	opened, gone, err := k.served(ctx, v["dev"], v["backend"], server)
	if err != nil || gone {
		return nil, err
	}
	if !k.describe(disk, v, opened) {
		return nil, nil
	}
	return disk, nil
}

// serverOf is the number of the domain that serves a disk; false where path is not the directory of that disk's backend.
func (k *diskReader) serverOf(path string, devid int) (int, bool) {
	f := strings.Split(path, "/")
	if len(f) != 8 || f[0] != "" || f[1] != "local" || f[2] != "domain" || f[4] != "backend" || !slices.Contains(backendKinds, f[5]) {
		return 0, false
	}
	server, ok := number(f[3], maxDomid)
	return server, ok && f[6] == strconv.Itoa(k.id) && f[7] == strconv.Itoa(devid) && server != k.id
}

// domainName is the name of a driver domain, as configurations have it, or its number: also where it is called as this domain is.
func (k *diskReader) domainName(ctx context.Context, id int) (string, error) {
	name, err := optional(k.r.Read(ctx, domainPath(id)+"/name"))
	if err != nil || name == "" || name == "0" || name == "Domain-0" || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return strconv.Itoa(id), err
	}
	return name, nil
}

// openedDevice is what blkback, or the script that it was given its device by, says of that.
type openedDevice struct {
	number uint64 // as blockNumber has it
	known  bool
	path   string // "" where the script does not say
}

// served reads a backend's directory. gone tells that the backend has closed the disk for good.
func (k *diskReader) served(ctx context.Context, vdev, dir string, server int) (o openedDevice, gone bool, err error) {
	ok, err := guarded(ctx, k.r, dir, server)
	if errors.Is(err, backend.ErrNotExist) {
		// A driver domain's directory goes with it; the guest still has the disk.
		return o, server == 0, nil
	}
	if err != nil {
		return o, false, err
	}
	if !ok {
		k.fail(backend.ErrPermission, "disk %s: others than its backend may write %s, which is not believed", vdev, dir)
		return o, false, nil
	}
	v := map[string]string{}
	for _, name := range []string{"online", "state", "physical-device", "physical-device-path"} {
		if v[name], err = k.value(ctx, dir, name); err != nil {
			return o, false, err
		}
	}
	state, err := strconv.Atoi(v["state"])
	if gone = v["online"] == "0" && err == nil && state >= stateClosed; gone || server != 0 {
		return o, gone, nil
	}
	if filepath.IsAbs(v["physical-device-path"]) {
		o.path = v["physical-device-path"]
	}
	o.number, o.known = physicalDevice(v["physical-device"])
	return o, false, nil
}

// describe says what is behind a disk. False for one of which that cannot be said.
func (k *diskReader) describe(disk *backend.Disk, v map[string]string, opened openedDevice) bool {
	kind, target := v["type"], v["params"]
	switch {
	case kind == "phy" && v["tapdisk-params"] != "":
		disk.Backend = "tap"
		disk.Format, disk.Source = formatAndPath(v["tapdisk-params"])
	case kind == "phy", kind == "standalone":
		disk.Backend, disk.Format, disk.Source = kind, "raw", target
		disk.Script = customScript(v["script"])
		if disk.Source != "" && disk.BackendDomain == "" {
			k.locate(disk, opened)
		}
	case kind == "qdisk", kind == "tap":
		disk.Backend = kind
		disk.Format, disk.Source = formatAndPath(target)
	default:
		k.fail(backend.ErrUnsupported, "disk %s is of the type %.80q, which is unknown, and left out", disk.VDev, kind)
		return false
	}
	switch {
	case disk.Source == "" && disk.CDROM:
		disk.Format = ""
	case disk.Source == "":
		k.fail(backend.ErrInvalid, "disk %s has no target, and is left out", disk.VDev)
		return false
	case disk.Format == "":
		k.fail(backend.ErrUnsupported, "disk %s has no format in %.200q, and is left out", disk.VDev, target)
		return false
	case disk.Script == "" && disk.BackendDomain == "" && !filepath.IsAbs(disk.Source) && !hasProtocol(disk.Source):
		k.fail(backend.ErrUnsupported, "disk %s: %.200q is relative to the folder in which its domain was made, which is unknown; it is left out", disk.VDev, disk.Source)
		return false
	}
	return true
}

// formatAndPath reads FORMAT:PATH. The path may hold colons.
func formatAndPath(s string) (format, path string) {
	format, path, ok := strings.Cut(s, ":")
	if !ok {
		return "", format
	}
	if format == "aio" {
		format = "raw"
	}
	return format, path
}

// scriptFolder is where xl finds scripts that are named without a folder; a configuration names them so.
const scriptFolder = "/etc/xen/scripts"

// customScript is a block script other than the standard one, which interprets nothing; else "".
func customScript(script string) string {
	if script == "" || path.Base(script) == "block" {
		return ""
	}
	if path.Dir(script) == scriptFolder {
		return path.Base(script)
	}
	return script
}

// hasProtocol tells whether QEMU would take target as PROTOCOL:REST: a colon before any slash.
func hasProtocol(target string) bool {
	i := strings.IndexAny(target, ":/")
	return i > 0 && target[i] == ':'
}
