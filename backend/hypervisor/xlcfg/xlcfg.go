package xlcfg

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"domfs/backend"

	"go.uber.org/zap"
)

var _ backend.Hypervisor = (*Driver)(nil)

// DefaultPaths are where xl's admins keep configuration files. In a folder named
// auto every file counts (it holds links to what is started at boot), in others *.cfg.
var DefaultPaths = []string{"/etc/xen", "/etc/xen/auto"}

// Driver lists the domains that configuration files describe.
type Driver struct {
	paths []string // absolute
	log   *zap.Logger

	mu     sync.Mutex
	cache  map[string]entry  // guarded by mu; by absolute path
	warned map[string]string // guarded by mu; what was logged of a path, until it is well again
}

// New makes a Driver of folders and files: of DefaultPaths if paths is empty. A path
// of these that is missing is no fault; of others, a folder is logged, and a file (it has an extension)
// is a domain with an error. log may be nil.
func New(paths []string, log *zap.Logger) *Driver {
	if len(paths) == 0 {
		paths = DefaultPaths
	}
	if log == nil {
		log = zap.NewNop()
	}
	d := &Driver{log: log, cache: map[string]entry{}, warned: map[string]string{}}
	for _, p := range paths {
		d.paths = append(d.paths, absolute(p))
	}
	return d
}

// Name is "xlcfg".
func (d *Driver) Name() string { return "xlcfg" }

// Domains lists the domains, in the order of their files' paths. Files that did not
// change since the last call are not read again. It fails only when ctx ends.
func (d *Driver) Domains(ctx context.Context) ([]backend.Domain, error) {
	files, err := d.files(ctx)
	if err != nil {
		return nil, listError(err)
	}
	d.mu.Lock()
	old := d.cache
	d.mu.Unlock()

	cache := make(map[string]entry, len(files))
	domains := make([]backend.Domain, 0, len(files))
	for _, f := range files {
		if err := ctx.Err(); err != nil {
			return nil, listError(err)
		}
		dom, gone := d.domain(f, old, cache)
		if !gone {
			domains = append(domains, dom)
		}
	}
	distinguish(domains)

	d.mu.Lock()
	d.cache = cache // never written to again
	d.mu.Unlock()
	return domains, nil
}

// domain is the domain of a file: what cache old has of it, or else read anew.
func (d *Driver) domain(f file, old, cache map[string]entry) (dom backend.Domain, gone bool) {
	if f.err != nil {
		return broken(f.path, f.err), false
	}
	e, ok := old[f.path]
	if !ok || !e.settled || e.stamp != f.stamp {
		var err error
		if e, err = readEntry(f.path); err != nil {
			if errors.Is(err, backend.ErrNotExist) {
				return dom, true // removed since it was listed
			}
			return broken(f.path, err), false
		}
		d.log.Debug("configuration read", zap.String("file", f.path), zap.String("domain", e.domain.Name))
	}
	cache[f.path] = e
	dom = e.domain
	dom.Disks = slices.Clone(dom.Disks)
	dom.Warnings = slices.Clone(dom.Warnings)
	return dom, false
}

// warn logs a fault of a path once, until forgive.
func (d *Driver) warn(path string, err error) {
	text := err.Error()
	d.mu.Lock()
	known := d.warned[path] == text
	d.warned[path] = text
	d.mu.Unlock()
	if !known {
		d.log.Warn("no domains from here", zap.String("path", path), zap.Error(err))
	}
}

func (d *Driver) forgive(path string) {
	d.mu.Lock()
	delete(d.warned, path)
	d.mu.Unlock()
}

func listError(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("list xl's configuration files: %w: %w", backend.ErrTimeout, err)
	}
	return fmt.Errorf("list xl's configuration files: %w", err)
}

func byPath(a, b file) int { return strings.Compare(a.path, b.path) }
