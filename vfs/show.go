package vfs

import (
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"

	"domfs/backend"
	"domfs/control"
)

// The functions that tree names: what directories list, and what value files hold.

func gone(kind, name string) error {
	return fmt.Errorf("%s %s: %w", kind, name, backend.ErrNotExist)
}

// --- domains

func domains(c *call, _ place) ([]string, error) {
	inv, err := c.inventory()
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(inv.Domains))
	for _, d := range inv.Domains {
		names = append(names, d.Name)
	}
	return names, nil
}

func findDomain(c *call, at place, name string) (place, string, error) {
	at.domain = name
	_, err := c.domain(at)
	return at, name, err
}

func domainName(c *call, at place) (string, error) { return at.domain, nil }

func domainUUID(c *call, at place) (string, error) {
	d, err := c.domain(at)
	if err != nil {
		return "", err
	}
	return d.UUID, nil
}

func domainID(c *call, at place) (string, error) {
	d, err := c.domain(at)
	if err != nil || d.ID < 0 {
		return "", err
	}
	return strconv.Itoa(d.ID), nil
}

func domainState(c *call, at place) (string, error) {
	d, err := c.domain(at)
	if err != nil {
		return "", err
	}
	return string(d.State), nil
}

func domainConfig(c *call, at place) (string, error) {
	d, err := c.domain(at)
	if err != nil {
		return "", err
	}
	return d.Config, nil
}

func domainLastError(c *call, at place) (string, error) {
	return strings.TrimSuffix(string(c.fs.host.LastErrors(at.domain)), "\n"), nil
}

func domainSnapshotsLink(c *call, at place) (string, error) {
	d, err := c.domain(at)
	if err != nil {
		return "", err
	}
	return "../../snapshots/" + d.SnapshotDir, nil
}

// --- live disks

func liveDisks(c *call, at place) ([]string, error) {
	d, err := c.domain(at)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(d.Disks))
	for i := range d.Disks {
		names = append(names, d.Disks[i].VDev)
	}
	return append(names, newDisks(c, d)...), nil
}

func findLiveDisk(c *call, at place, name string) (place, string, error) {
	at.vdev = name
	_, _, err := c.disk(at)
	return at, name, err
}

func diskDriver(c *call, at place) (string, error) {
	_, v, err := c.disk(at)
	if err != nil {
		return "", err
	}
	return v.Driver, nil
}

func diskFormat(c *call, at place) (string, error) {
	d, v, err := c.disk(at)
	if err != nil {
		return "", err
	}
	if v.Format != "" {
		return v.Format, nil
	}
	return d.Format, nil
}

func diskSource(c *call, at place) (string, error) {
	d, _, err := c.disk(at)
	if err != nil {
		return "", err
	}
	return d.Source, nil
}

func diskMode(c *call, at place) (string, error) {
	d, _, err := c.disk(at)
	if err != nil {
		return "", err
	}
	return string(d.Mode), nil
}

// neverGrows says why a disk's size is not to be written.
func neverGrows(c *call, at place) error {
	d, _, err := c.disk(at)
	if err != nil {
		return err
	}
	return control.NeverGrows(at.domain, d)
}

func resizeDisk(c *call, at place, value string) error {
	if c.isNewDisk(at) {
		return c.fs.host.Attach(c.ctx, at.domain, at.vdev, value)
	}
	return c.fs.host.Resize(c.ctx, at.domain, at.vdev, value)
}

// --- snapshots

func snapshotDirs(c *call, _ place) ([]string, error) {
	inv, err := c.inventory()
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(inv.Snapshots))
	for _, d := range inv.Snapshots {
		names = append(names, d.Name)
	}
	return names, nil
}

func findSnapshotDir(c *call, at place, name string) (place, string, error) {
	inv, err := c.inventory()
	if err != nil {
		return at, "", err
	}
	if inv.SnapshotDir(name) == nil {
		return at, "", gone("domain", name)
	}
	at.dir = name
	return at, name, nil
}

func sets(c *call, at place) ([]string, error) {
	dir, err := c.snapshotDir(at)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(dir.Sets))
	for _, s := range dir.Sets {
		names = append(names, s.Name)
	}
	return names, nil
}

func findSet(c *call, at place, name string) (place, string, error) {
	dir, err := c.snapshotDir(at)
	if err != nil {
		return at, "", err
	}
	s := dir.Set(name)
	if s == nil {
		return at, "", gone("snapshot", name)
	}
	at.setID = s.ID
	return at, s.ID, nil
}

func makeSnapshot(c *call, at place, name string) error {
	return c.fs.host.Snapshot(c.ctx, at.dir, name)
}

func removeSnapshot(c *call, at place, name string) error {
	return c.fs.host.Remove(c.ctx, at.dir, name)
}

func renameSnapshot(c *call, at place, oldName, newName string) error {
	return c.fs.host.Rename(c.ctx, at.dir, oldName, newName)
}

func ofSet(f func(s *control.Set) string) func(c *call, at place) (string, error) {
	return func(c *call, at place) (string, error) {
		s, err := c.set(at)
		if err != nil {
			return "", err
		}
		return f(s), nil
	}
}

var (
	setCreated     = ofSet(func(s *control.Set) string { return s.Created.UTC().Format(time.RFC3339) })
	setConsistency = ofSet(func(s *control.Set) string { return string(s.Consistency) })
	setState       = ofSet(func(s *control.Set) string { return string(s.State) })
	setExpires     = ofSet(func(s *control.Set) string {
		if s.Expires.IsZero() {
			return ""
		}
		return s.Expires.UTC().Format(time.RFC3339)
	})
	setHold = ofSet(func(s *control.Set) string {
		if s.Hold {
			return "1"
		}
		return "0"
	})
)

func writeExpires(c *call, at place, value string) error {
	s, err := c.set(at)
	if err != nil {
		return err
	}
	return c.fs.host.SetExpires(c.ctx, at.dir, s.Name, value)
}

func writeHold(c *call, at place, value string) error {
	s, err := c.set(at)
	if err != nil {
		return err
	}
	return c.fs.host.SetHold(c.ctx, at.dir, s.Name, value)
}

func setDisks(c *call, at place) ([]string, error) {
	s, err := c.set(at)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(s.Disks))
	for i := range s.Disks {
		names = append(names, s.Disks[i].Disk.VDev)
	}
	return names, nil
}

func findSetDisk(c *call, at place, name string) (place, string, error) {
	at.vdev = name
	_, _, err := c.disk(at)
	return at, name, err
}

func ofSnapshot(f func(k *backend.Snapshot) string) func(c *call, at place) (string, error) {
	return func(c *call, at place) (string, error) {
		_, k, err := c.snapshot(at)
		if err != nil {
			return "", err
		}
		return f(k), nil
	}
}

var (
	diskUsed    = ofSnapshot(func(k *backend.Snapshot) string { return strconv.FormatInt(k.UsedBytes, 10) })
	diskReserve = ofSnapshot(func(k *backend.Snapshot) string { return strconv.FormatInt(k.ReserveBytes, 10) })
	// Rounded down: 100 is full, and nothing else.
	diskFill = ofSnapshot(func(k *backend.Snapshot) string { return strconv.Itoa(int(min(max(k.FillPercent, 0), 100))) })
)

func hasReserve(c *call, at place) (bool, error) {
	_, k, err := c.snapshot(at)
	return err == nil && control.HasReserve(k), err
}

func extendReserve(c *call, at place, value string) error {
	s, _, err := c.snapshot(at)
	if err != nil {
		return err
	}
	return c.fs.host.ExtendReserve(c.ctx, at.dir, s.Name, at.vdev, value)
}

// --- volumes

func volumeSize(c *call, at place) (string, error) {
	if empty, err := c.noMedium(at); empty || err != nil {
		return "", err
	}
	size, err := c.sizeBytes(at)
	if err != nil {
		return "", err
	}
	return strconv.FormatInt(size, 10), nil
}

func ofContent(f func(backend.Content) string) func(c *call, at place) (string, error) {
	return func(c *call, at place) (string, error) {
		if empty, err := c.noMedium(at); empty || err != nil {
			return "", err
		}
		v, err := c.volume(at)
		if err != nil {
			return "", err
		}
		defer v.Release()
		content, err := v.Content()
		if err != nil {
			return "", err
		}
		return f(content), nil
	}
}

var (
	volumeContent = ofContent(func(c backend.Content) string { return c.Type })
	volumeLabel   = ofContent(func(c backend.Content) string { return printable(c.Label) })
	volumeUUID    = ofContent(func(c backend.Content) string { return c.UUID })
)

// printable is a guest's text for one line on a terminal: control characters become \xNN, as
// blkid shows them.
func printable(text string) string {
	var b strings.Builder
	for i := range len(text) {
		if c := text[i]; c < ' ' || c == 0x7f {
			fmt.Fprintf(&b, `\x%02x`, c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

func hasFiles(c *call, at place) (bool, error) {
	if empty, err := c.noMedium(at); empty || err != nil {
		return false, err
	}
	v, err := c.volume(at)
	if err != nil {
		return false, err
	}
	defer v.Release()
	return v.HasFiles(), nil
}

func parts(c *call, at place) ([]string, error) {
	v, err := c.volume(at)
	if err != nil {
		if errors.Is(err, errWouldWait) {
			return nil, err
		}
		return nil, nil // the directory lists its value files all the same; reading them says why
	}
	defer v.Release()
	ps, err := v.Parts()
	if err != nil {
		c.fs.host.Failed(c.owner(at), "partitions", err)
		return nil, nil
	}
	names := make([]string, 0, len(ps))
	for i := range ps {
		names = append(names, "p"+strconv.Itoa(ps[i].Number))
	}
	return names, nil
}

func findPart(c *call, at place, name string) (place, string, error) {
	digits, ok := strings.CutPrefix(name, "p")
	n, err := strconv.Atoi(digits)
	if !ok || err != nil || n < 1 || strconv.Itoa(n) != digits {
		return at, "", gone("partition", name)
	}
	if empty, err := c.noMedium(at); empty {
		return at, "", gone("partition", name)
	} else if err != nil {
		return at, "", err
	}
	v, err := c.volume(at)
	if err != nil {
		return at, "", err
	}
	defer v.Release()
	ps, err := v.Parts()
	if err != nil {
		return at, "", c.fs.host.Failed(c.owner(at), "partitions", err)
	}
	for i := range ps {
		if ps[i].Number == n {
			if at.path != "" {
				at.path += "/"
			}
			at.path += name
			return at, name, nil
		}
	}
	return at, "", gone("partition", name)
}

// --- stores and the daemon

func pools(c *call, _ place) ([]string, error) {
	inv, err := c.inventory()
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(inv.Pools))
	for _, p := range inv.Pools {
		names = append(names, p.Name)
	}
	return names, nil
}

func findPool(c *call, at place, name string) (place, string, error) {
	at.pool = name
	_, err := c.pool(at)
	return at, name, err
}

func hasMetadata(c *call, at place) (bool, error) {
	p, err := c.pool(at)
	return p.MetadataSizeBytes > 0, err
}

func ofPool(f func(p control.Pool) string) func(c *call, at place) (string, error) {
	return func(c *call, at place) (string, error) {
		p, err := c.pool(at)
		if err != nil {
			return "", err
		}
		return f(p), nil
	}
}

var (
	poolDriver = ofPool(func(p control.Pool) string { return p.Driver })
	poolSize   = ofPool(func(p control.Pool) string { return strconv.FormatInt(p.SizeBytes, 10) })
	poolFree   = ofPool(func(p control.Pool) string { return strconv.FormatInt(p.FreeBytes, 10) })

	poolMetadataFree = ofPool(func(p control.Pool) string { return strconv.FormatInt(p.MetadataFreeBytes, 10) })
)

func daemonVersion(c *call, _ place) (string, error) { return c.fs.version, nil }

func daemonStats(c *call, _ place) (string, error) {
	stats := c.fs.host.Stats()
	for name, n := range c.fs.stats() {
		stats[name] = n
	}
	lines := make([]string, 0, len(stats))
	for name, n := range stats {
		lines = append(lines, name+" "+strconv.FormatInt(n, 10))
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n"), nil
}
