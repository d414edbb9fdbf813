package xen

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"

	"domfs/backend"
)

// The states of a device's end, as xenbus numbers them, that matter here.
const (
	stateConnected = 4
	stateClosing   = 5
)

// sectorBytes is the unit of `sectors`, whatever the disk's own sectors are.
const sectorBytes = 512

// device is a disk that a domain has, as far as it can be told what serves it.
type device struct {
	back   string // the backend's directory
	kind   string // what serves it: phy, qdisk …; tap where that is below a phy
	target string
	server int // the domain that serves it
}

// device finds a disk of a domain. ErrNotExist where it has none of that name.
func (d *Driver) device(ctx context.Context, id int, vdev string) (*device, error) {
	k := &diskReader{d: d, r: d.store, id: id, warn: func(string, ...any) {}, fail: func(error, string, ...any) {}}
	for _, kind := range diskKinds {
		dir := "/libxl/" + strconv.Itoa(id) + "/device/" + kind
		names, err := d.list(ctx, dir)
		if errors.Is(err, backend.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			devid, ok := number(name, 1<<31-1)
			if !ok {
				continue
			}
			v, err := k.values(ctx, path.Join(dir, name), "dev", "backend", "type", "params", "tapdisk-params")
			if err != nil {
				return nil, err
			}
			if v["dev"] != vdev || v["backend"] == "" {
				continue
			}
			if ok, err := guarded(ctx, d.store, path.Join(dir, name), 0); err != nil || !ok {
				return nil, errors.Join(err, fmt.Errorf("others than domain 0 may write what %s is: %w", vdev, backend.ErrPermission))
			}
			server, ok := k.serverOf(v["backend"], devid)
			if !ok {
				return nil, fmt.Errorf("%s: %.200q is not the directory of its backend: %w", vdev, v["backend"], backend.ErrCorrupt)
			}
			found := &device{back: v["backend"], kind: v["type"], target: v["params"], server: server}
			switch {
			case kind != "vbd":
				found.kind = kind
			case v["tapdisk-params"] != "":
				found.kind = "tap"
			}
			return found, nil
		}
	}
	return nil, fmt.Errorf("domain %d has no disk %s: %w", id, vdev, backend.ErrNotExist)
}

// values reads some of the values of a device; "" for those that are not there.
func (k *diskReader) values(ctx context.Context, dir string, names ...string) (map[string]string, error) {
	v := map[string]string{}
	for _, name := range names {
		var err error
		if v[name], err = k.value(ctx, dir, name); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// number reads a number that the backend wrote; 0 where there is none.
func (d *Driver) number(ctx context.Context, path string) (int64, error) {
	s, err := optional(d.read(ctx, path))
	if err != nil || s == "" {
		return 0, err
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%s is %.80q: %w", path, s, backend.ErrCorrupt)
	}
	return n, nil
}
