package xen

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"domfs/backend"
	"domfs/backend/hypervisor/xen/xenstore"

	"go.uber.org/zap"
)

const (
	watchGap      = 100 * time.Millisecond // between two calls of changed, at least
	retryFirst    = 100 * time.Millisecond // before xenstored is looked for again
	retryLast     = 500 * time.Millisecond
	maxSuspects   = 4096 // backends that are looked at each by itself: of more, all have changed
	backendPrefix = "/local/domain/0/backend/"
	libxlPrefix   = "/libxl/"
)

// watched are the paths that are always watched. None is below a directory in which a guest may write.
var watched = []string{"@introduceDomain", "@releaseDomain", "/libxl", backendPrefix + "vbd", backendPrefix + "qdisk", backendPrefix + "virtio_disk"}

// watcher is one call of Watch.
type watcher struct {
	d    *Driver
	kick chan struct{} // one slot

	mu       sync.Mutex
	changed  bool            // guarded by mu; something has
	domains  bool            // guarded by mu; there may be others
	suspects map[string]bool // guarded by mu; backends' directories in which something was written

	// of the loop's goroutine
	names  map[int]*xenstore.Watch
	always []*xenstore.Watch
	values map[string]string // by backend's directory: what of it matters
}

// Watch calls changed for each change of a domain, its name, its disks or their sizes, until ctx ends. While
// xenstored is away, which is a change, too, it waits for it.
func (d *Driver) Watch(ctx context.Context, changed func()) error {
	w := &watcher{d: d, kick: make(chan struct{}, 1), suspects: map[string]bool{}, names: map[int]*xenstore.Watch{}, values: map[string]string{}}
	defer w.stop(ctx)
	pause := retryFirst
	away := ""
	for {
		lost, err := w.begin(ctx)
		if err == nil {
			if away != "" {
				d.log.Info("xenstored is there again")
			}
			pause, away = retryFirst, ""
			err = w.follow(ctx, lost, changed)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if now := err.Error(); away == "" {
			d.log.Warn("xenstored cannot be watched: it is looked for again", zap.Error(err))
			away = now
			changed() // nothing is known now
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		pause = min(2*pause, retryLast)
	}
}

// begin connects, and sets up what is always watched.
func (w *watcher) begin(ctx context.Context) (lost <-chan struct{}, err error) {
	if lost, err = w.d.store.Connect(ctx); err != nil {
		return nil, err
	}
	for _, path := range watched[len(w.always):] {
		one, err := w.d.store.Watch(ctx, path, w.fired)
		if err != nil {
			return nil, err
		}
		w.always = append(w.always, one)
	}
	w.note(func() { w.changed, w.domains = true, true })
	return lost, nil
}

func (w *watcher) stop(ctx context.Context) {
	for _, one := range w.always {
		one.Stop(ctx)
	}
	for _, one := range w.names {
		one.Stop(ctx)
	}
}

// note notes something for the loop.
func (w *watcher) note(f func()) {
	w.mu.Lock()
	f()
	w.mu.Unlock()
	select {
	case w.kick <- struct{}{}:
	default: // it is going to look anyway
	}
}

// fired is called for each event. It does not block.
func (w *watcher) fired(path string) {
	switch {
	case path == "@introduceDomain", path == "@releaseDomain":
		w.note(func() { w.changed, w.domains = true, true })
	case strings.HasPrefix(path, backendPrefix):
		dir, ok := backendOf(path)
		if !ok {
			return
		}
		w.note(func() {
			if len(w.suspects) < maxSuspects {
				w.suspects[dir] = true
			} else {
				w.changed = true
			}
		})
	case strings.HasPrefix(path, libxlPrefix):
		// /libxl/<domid>/device/<kind>/…
		if f := strings.SplitN(path, "/", 6); len(f) < 5 || f[3] == "device" && (f[4] == "vbd" || f[4] == "virtio_disk") {
			w.note(func() { w.changed = true })
		}
	default: // a name, or one of the directories as a whole
		w.note(func() { w.changed = true })
	}
}

// backendNodes are those of a backend that say something of its disk.
var backendNodes = []string{"sectors", "params", "online", "physical-device", "mode"}

// backendOf is the directory of the backend that an event is about: <kind>/<domid>/<devid>. False for one that
// does not matter.
func backendOf(path string) (string, bool) {
	f := strings.Split(strings.TrimPrefix(path, backendPrefix), "/")
	switch {
	case len(f) < 3:
		return "", false // a domain's first disk, or its last: /libxl has it, too
	case len(f) > 4:
		return "", false
	case len(f) == 4:
		matters := false
		for _, name := range backendNodes {
			matters = matters || f[3] == name
		}
		if !matters {
			return "", false
		}
	}
	return backendPrefix + f[0] + "/" + f[1] + "/" + f[2], true
}

// follow tells of changes until the connection is lost.
func (w *watcher) follow(ctx context.Context, lost <-chan struct{}, changed func()) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-lost:
			return errLost
		case <-w.kick:
		}
		tell, err := w.look(ctx)
		if err != nil {
			return err
		}
		if tell {
			changed()
		}
		timer := time.NewTimer(w.d.gap) // what comes meanwhile is told at once
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

var errLost = errors.New("the connection was lost")

// look finds out whether what was noted is a change.
func (w *watcher) look(ctx context.Context) (changed bool, err error) {
	w.mu.Lock()
	changed = w.changed
	domains, suspects := w.domains, w.suspects
	w.changed, w.domains, w.suspects = false, false, map[string]bool{}
	w.mu.Unlock()
	if domains {
		if err := w.watchNames(ctx); err != nil {
			w.note(func() { w.changed, w.domains = true, true })
			return false, err
		}
	}
	for dir := range suspects {
		now, err := w.value(ctx, dir)
		if err != nil {
			w.note(func() { w.changed = true })
			return false, err
		}
		if before, known := w.values[dir]; !known || before != now {
			changed = true
		}
		if w.values[dir] = now; now == "" {
			delete(w.values, dir)
		}
	}
	return changed, nil
}

// value is what of a backend matters; "" if it has gone.
func (w *watcher) value(ctx context.Context, dir string) (string, error) {
	var b strings.Builder
	there := false
	for _, name := range backendNodes {
		v, err := w.d.read(ctx, dir+"/"+name)
		if err != nil && !errors.Is(err, backend.ErrNotExist) && !errors.Is(err, backend.ErrInvalid) {
			return "", err
		}
		there = there || err == nil
		b.WriteString(strconv.Quote(v))
	}
	if !there {
		return "", nil
	}
	return b.String(), nil
}

// watchNames watches the names of the domains that there are.
func (w *watcher) watchNames(ctx context.Context) error {
	ids, err := w.d.guests(ctx)
	if err != nil {
		return err
	}
	there := map[int]bool{}
	for _, id := range ids {
		there[id] = true
		if w.names[id] == nil {
			one, err := w.d.store.Watch(ctx, domainPath(id)+"/name", w.fired)
			if err != nil {
				return err
			}
			w.names[id] = one
		}
	}
	for id, one := range w.names {
		if !there[id] {
			one.Stop(ctx)
			delete(w.names, id)
		}
	}
	return nil
}
