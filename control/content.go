package control

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"

	"domfs/backend"

	"go.uber.org/zap"
)

// Volume is what the tree shows as a VOLUME: a disk, a partition, or what an Assembler found. It is open
// as long as it is acquired.
type Volume struct {
	disk  *disk
	ref   VolumeRef
	dev   backend.Device
	depth int   // how many partition tables are above it
	cost  int64 // of the assembled volume that it is or is on; 0 on a disk

	probeMu sync.Mutex
	content answer[backend.Content] // guarded by probeMu

	partsMu sync.Mutex
	parts   answer[[]backend.Part] // guarded by partsMu

	fsMu    sync.Mutex
	fs      answer[backend.FS] // guarded by fsMu
	opening *fsOpening         // guarded by fsMu; nil unless it is being opened
}

// answer is what was found out, or why that can never be.
type answer[T any] struct {
	known bool
	value T
	err   error
}

// ask finds an answer once. Errors that may pass, as of a device that cannot be read now,
// are not kept.
func (a *answer[T]) ask(f func() (T, error)) (T, error) {
	if !a.known {
		a.value, a.err = f()
		a.known = a.err == nil || errors.Is(a.err, backend.ErrCorrupt) || errors.Is(a.err, backend.ErrUnsupported)
	}
	return a.value, a.err
}

// guarded calls a parser of guest bytes. It should never panic; if it does, the bytes
// must not take the daemon down.
func guarded[T any](v *Volume, what string, f func() (T, error)) (out T, err error) {
	defer func() {
		if p := recover(); p != nil {
			v.disk.h.log.Error("a driver failed on a guest's bytes: this is a defect of domfs", zap.String("op", what),
				zap.String("volume", v.disk.from.volume.ID), zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
			err = fmt.Errorf("%s: what is there confuses the %s driver: %w", v, what, backend.ErrCorrupt)
		}
	}()
	return f()
}

// String names the volume in messages.
func (v *Volume) String() string {
	switch {
	case v.ref.Path == "":
		return v.disk.from.disk
	case v.ref.VDev == "":
		return v.ref.Path + " on " + v.disk.from.disk
	}
	return "partition " + v.ref.Path + " of " + v.disk.from.disk
}

// Ref is what the volume was opened by.
func (v *Volume) Ref() VolumeRef { return v.ref }

// Frozen tells whether the bytes can never change: a snapshot's.
func (v *Volume) Frozen() bool { return v.disk.from.frozen }

// Running tells whether it is a live disk of a domain that runs (as of when it was opened): then it
// has no files.
func (v *Volume) Running() bool { return v.disk.from.running }

// Generation is the live disk's, as of when it was opened: as long as it is the same, so are
// the bytes.
func (v *Volume) Generation() uint64 { return v.disk.from.volume.Generation }

// IsRaw tells whether the bytes lie in the disk's own file or device as the guest sees them. Elsewhere
// (in an image's format, over several disks) their places may change as the guest writes.
func (v *Volume) IsRaw() bool {
	if v.disk.all != nil {
		return false
	}
	format := v.disk.from.volume.Format
	return format == "" || format == "raw"
}

// Device is the bytes.
func (v *Volume) Device() backend.Device { return v.dev }

// Content says what is on it; probed once.
func (v *Volume) Content() (backend.Content, error) {
	return whileUsable(v, v.probe)
}

func (v *Volume) probe() (backend.Content, error) {
	v.probeMu.Lock()
	defer v.probeMu.Unlock()
	return v.content.ask(func() (backend.Content, error) {
		if v.disk.h.o.Prober == nil {
			return backend.Content{}, nil
		}
		return guarded(v, "probe", func() (backend.Content, error) {
			c, err := v.disk.h.o.Prober.Probe(v.dev)
			if err != nil {
				err = fmt.Errorf("%s: %w", v, err)
			}
			return c, err
		})
	})
}

// maxParts is the most partitions of one table that are shown; the drivers have
// limits of their own below it.
const maxParts = 1024

// Parts lists the partitions, read once; none where Content is not a partition table or the
// depth is at its maximum. A live disk of a running domain has its partitions, too. A part that
// cannot be read has its Err; the others can be. Warnings go where those of FS go.
func (v *Volume) Parts() ([]backend.Part, error) {
	return whileUsable(v, v.readParts)
}

func (v *Volume) readParts() ([]backend.Part, error) {
	v.partsMu.Lock()
	defer v.partsMu.Unlock()
	return v.parts.ask(func() ([]backend.Part, error) {
		if v.depth == maxPartDepth {
			return nil, nil
		}
		c, err := v.Content()
		if err != nil || c.Type == "" {
			return nil, err
		}
		i := slices.IndexFunc(v.disk.h.o.Layouts, func(l backend.Layout) bool { return slices.Contains(l.Types(), c.Type) })
		if i < 0 {
			return nil, nil
		}
		layout := v.disk.h.o.Layouts[i]
		parts, err := guarded(v, c.Type, func() ([]backend.Part, error) { return layout.Parts(v.dev) })
		if err != nil {
			return nil, fmt.Errorf("%s: its %s partition table: %w", v, c.Type, err)
		}
		if w, ok := layout.(backend.PartWarner); ok {
			warnings, _ := guarded(v, c.Type, func() ([]string, error) { return w.Warnings(v.dev), nil })
			v.warn("partitions", warnings)
		}
		return distinct(parts), nil
	})
}

// distinct drops parts that cannot be a directory: the first of each number is kept.
func distinct(parts []backend.Part) []backend.Part {
	seen := map[int]bool{}
	out := make([]backend.Part, 0, min(len(parts), maxParts))
	for _, p := range parts {
		if p.Number <= 0 || seen[p.Number] || len(out) == maxParts {
			continue
		}
		seen[p.Number] = true
		if p.Device == nil && p.Err == nil {
			p.Err = fmt.Errorf("partition %d has no bytes: %w", p.Number, backend.ErrCorrupt)
		}
		out = append(out, p)
	}
	return out
}

// maxVolumes is how many volumes of one disk can be open.
const maxVolumes = 4096

// child is the volume of a partition. It lives as long as the disk.
func (v *Volume) child(number int) (*Volume, error) {
	ref := v.ref
	ref.Path = "p" + strconv.Itoa(number)
	if v.ref.Path != "" {
		ref.Path = v.ref.Path + "/" + ref.Path
	}
	d := v.disk
	d.mu.Lock()
	c := d.volumes[ref.Path]
	d.mu.Unlock()
	if c != nil {
		return c, nil
	}
	parts, err := v.Parts()
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(parts, func(p backend.Part) bool { return p.Number == number })
	if i < 0 {
		return nil, unrecorded{fmt.Errorf("%s has no partition %d: %w", v, number, backend.ErrNotExist)}
	}
	if err := parts[i].Err; err != nil {
		return nil, fmt.Errorf("partition %s of %s: %w", ref.Path, d.from.disk, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.volumes[ref.Path]; c != nil {
		return c, nil
	}
	if len(d.volumes) >= maxVolumes {
		return nil, fmt.Errorf("%s has more partitions in partitions than the %d that can be open: %w", d.from.disk, maxVolumes, backend.ErrUnsupported)
	}
	c = &Volume{disk: d, ref: ref, dev: parts[i].Device, depth: v.depth + 1, cost: v.cost}
	d.volumes[ref.Path] = c
	return c, nil
}

// filesystem finds the driver for the content, nil if there is none.
func (v *Volume) filesystem() (backend.Filesystem, backend.Content, error) {
	c, err := v.Content()
	if err != nil || c.Type == "" {
		return nil, c, err
	}
	for _, f := range v.disk.h.o.Filesystems {
		if slices.Contains(f.Types(), c.Type) {
			return f, c, nil
		}
	}
	return nil, c, nil
}

// HasFiles tells whether there is a filesystem driver for the Content and FS may be called.
func (v *Volume) HasFiles() bool {
	if v.Running() {
		return false
	}
	f, _, err := v.filesystem()
	return err == nil && f != nil
}

// fsOpening is a filesystem that is being opened, in a goroutine of its own: who waits for it can
// give up.
type fsOpening struct {
	cancel chan struct{} // closed when the driver is to end early
	ended  chan struct{} // closed after fs and err were set
	fs     backend.FS
	err    error
}

// FS opens the filesystem, once; it lives as long as the volume. Its warnings go to
// last_error, the log and events. A failure is recorded there, too. Whoever comes waits for one
// opening until its own ctx ends; the opening goes on then, for the next one.
func (v *Volume) FS(ctx context.Context) (backend.FS, error) {
	if v.Running() {
		return nil, fmt.Errorf("%s belongs to a domain that runs: its files are in a snapshot of it: %w", v, backend.ErrUnsupported)
	}
	return whileUsable(v, func() (backend.FS, error) { return v.files(ctx) })
}

func (v *Volume) files(ctx context.Context) (backend.FS, error) {
	v.fsMu.Lock()
	if v.fs.known {
		defer v.fsMu.Unlock()
		return v.fs.value, v.fs.err
	}
	o := v.opening
	if o == nil {
		o = &fsOpening{cancel: make(chan struct{}), ended: make(chan struct{})}
		v.opening = o
		go v.open(o)
	}
	v.fsMu.Unlock()
	select {
	case <-o.ended:
		return o.fs, o.err
	case <-ctx.Done():
		return nil, contextError(ctx, "opening the filesystem of "+v.String())
	}
}

// open opens the filesystem, keeps what comes of it, and tells it.
func (v *Volume) open(o *fsOpening) {
	h := v.disk.h
	fs, err := v.openFS(o.cancel)
	select {
	case <-o.cancel:
		if err != nil { // nobody waits, or the daemon is ending
			err = fmt.Errorf("%s is being closed: %w", v, backend.ErrBusy)
			break
		}
		h.stats.add("filesystem_opens", 1)
	default:
		if err != nil {
			err = h.Failed(v.disk.from.domain, "files", err)
			break
		}
		h.stats.add("filesystem_opens", 1)
		v.warn("files", fs.Warnings())
	}
	v.fsMu.Lock()
	defer v.fsMu.Unlock()
	o.fs, o.err = v.fs.ask(func() (backend.FS, error) { return fs, err })
	v.opening = nil
	close(o.ended)
}

// warn tells what a driver warns of.
func (v *Volume) warn(op string, warnings []string) {
	for _, w := range warnings[:min(len(warnings), maxErrorsPerDomain)] {
		v.disk.h.warning(v.disk.from.domain, v.disk.from.snapshot, op, v.String()+": "+w)
	}
}

// openFS opens the filesystem, until done is closed if the driver can end early.
func (v *Volume) openFS(done <-chan struct{}) (backend.FS, error) {
	f, c, err := v.filesystem()
	if err != nil {
		return nil, err
	}
	if f == nil {
		return nil, fmt.Errorf("%s holds %q, which is no filesystem that is read here: %w", v, c.Type, backend.ErrUnsupported)
	}
	fs, err := guarded(v, c.Type, func() (backend.FS, error) {
		if i, ok := f.(backend.InterruptibleOpener); ok {
			return i.OpenUntil(done, v.dev)
		}
		return f.Open(v.dev)
	})
	if err != nil {
		return nil, fmt.Errorf("%s: its %s filesystem: %w", v, c.Type, err)
	}
	return fs, nil
}

// endOpening ends the opening of the filesystem, if it is under way: then ended is closed soon. Nobody
// has a reference to the volume, so that nobody opens it any more.
func (v *Volume) endOpening() (ended <-chan struct{}) {
	v.fsMu.Lock()
	defer v.fsMu.Unlock()
	if v.opening == nil {
		return nil
	}
	close(v.opening.cancel)
	return v.opening.ended
}

// closeFS closes the filesystem, if it was opened.
func (v *Volume) closeFS() {
	v.fsMu.Lock()
	defer v.fsMu.Unlock()
	if !v.fs.known || v.fs.value == nil {
		return
	}
	if err := v.fs.value.Close(); err != nil {
		v.disk.h.log.Warn("a filesystem did not close cleanly", zap.String("volume", v.disk.from.volume.ID), zap.Error(err))
	}
	v.fs = answer[backend.FS]{}
}
