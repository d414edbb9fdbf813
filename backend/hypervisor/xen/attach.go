package xen

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"domfs/backend"
	"domfs/backend/run"

	"go.uber.org/zap"
)

var _ backend.Attacher = (*Driver)(nil)

// Limits of attaching and detaching.
const (
	attachLimit  = 30 * time.Second // for xl to attach a disk, and for xl to detach one: it waits 10 s for the guest
	connectLimit = 20 * time.Second // for the guest to connect to a disk that is attached
	backLimit    = 30 * time.Second // for taking back what failed
	connectPause = 50 * time.Millisecond
)

// The first version of Xen whose `xl block-detach` leaves the disk where the guest does not let go of it. Those before take it
// away after ten seconds, whoever uses it.
const detachMajor, detachMinor = 4, 15

// Attach runs `xl block-attach`, and waits until the guest has connected to the disk. A guest that does not in time (it is
// paused, it has no driver) has not used it, so that it is taken back by force: ErrTimeout.
func (d *Driver) Attach(ctx context.Context, dom backend.Domain, k backend.Disk) error {
	spec, err := diskSpec(k)
	if err != nil {
		return err
	}
	if dom.ID <= 0 {
		return fmt.Errorf("domain %d gets no disks: %w", dom.ID, backend.ErrInvalid)
	}
	switch _, err := d.device(ctx, dom.ID, k.VDev); {
	case err == nil:
		return fmt.Errorf("%s has a disk %s: %w", dom.Name, k.VDev, backend.ErrExist)
	case !errors.Is(err, backend.ErrNotExist):
		return err
	}
	limited, cancel := context.WithTimeout(ctx, attachLimit)
	err = d.change(limited, d.toolstack, "block-attach", strconv.Itoa(dom.ID), spec)
	cancel()
	if err == nil {
		err = d.connected(ctx, dom, k.VDev)
	}
	if err != nil {
		d.takeBack(ctx, dom, k)
		return fmt.Errorf("attach %s to %s: %w", k.VDev, dom.Name, err)
	}
	return nil
}

// change runs a tool that changes something.
func (d *Driver) change(ctx context.Context, name string, args ...string) error {
	_, err := d.run.Run(ctx, name, args...)
	var e *run.Error
	if errors.As(err, &e) && e.Err == nil {
		return fmt.Errorf("%w: %w", err, backend.ErrIO) // it ran, and says why not
	}
	return err
}

// diskSpec is a disk in xl-disk-configuration(5)'s words.
func diskSpec(k backend.Disk) (string, error) {
	if !vdevSyntax.MatchString(k.VDev) {
		return "", fmt.Errorf("%.80q is no name of a disk: %w", k.VDev, backend.ErrInvalid)
	}
	if !filepath.IsAbs(k.Source) || strings.ContainsFunc(k.Source, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return "", fmt.Errorf("disk %s: %.200q is no path that xl takes: %w", k.VDev, k.Source, backend.ErrInvalid)
	}
	if k.CDROM || k.Script != "" || k.BackendDomain != "" {
		return "", fmt.Errorf("disk %s: only disks that this host serves itself are attached: %w", k.VDev, backend.ErrUnsupported)
	}
	format := k.Format
	if format == "" {
		format = backend.FormatRaw
	}
	words := []string{"format=" + format}
	if k.Backend != "" {
		words = append(words, "backendtype="+k.Backend)
	}
	access := string(k.Mode)
	if access == "" {
		access = string(backend.ReadWrite)
	}
	for _, w := range append(words[:len(words):len(words)], access) {
		if strings.ContainsAny(w, ", \t\n") {
			return "", fmt.Errorf("disk %s: %.80q is no word that xl takes: %w", k.VDev, w, backend.ErrInvalid)
		}
	}
	// The target is last: all that follows it is its, commas as well.
	return strings.Join(append(words, "vdev="+k.VDev, "access="+access, "target="+k.Source), ","), nil
}

// connected waits until the guest has connected to a disk.
func (d *Driver) connected(ctx context.Context, dom backend.Domain, vdev string) error {
	ctx, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	for {
		k, err := d.device(ctx, dom.ID, vdev)
		var state int64
		if err == nil {
			state, err = d.number(ctx, k.back+"/state")
		}
		if err == nil && state == stateConnected {
			return nil
		}
		silent := isSilence(err)
		if err != nil && !silent && ctx.Err() == nil {
			return err
		}
		select {
		case <-time.After(connectPause):
		case <-ctx.Done():
			if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return ctx.Err()
			}
			if silent {
				return fmt.Errorf("whether the guest has connected to it cannot be told: %w", err)
			}
			return fmt.Errorf("the guest has not connected to it (it is paused, or has no driver for it): %w", backend.ErrTimeout)
		}
	}
}

// isSilence tells whether err is that xenstored was not there to be asked, and says nothing of what was asked for.
func isSilence(err error) bool {
	return errors.Is(err, backend.ErrIO) || errors.Is(err, backend.ErrTimeout) || errors.Is(err, backend.ErrNoDevice)
}

// takeBack removes a disk that the guest has not connected to, whatever is left of it. One of that name that somebody else has attached
// meanwhile, which is why ours could not be, is not touched.
func (d *Driver) takeBack(ctx context.Context, dom backend.Domain, k backend.Disk) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), backLimit)
	defer cancel()
	there, err := d.device(ctx, dom.ID, k.VDev)
	switch {
	case errors.Is(err, backend.ErrNotExist):
		return // xl has cleared up itself
	case err == nil && there.target != k.Source && !strings.HasSuffix(there.target, ":"+k.Source):
		return
	case err == nil:
		err = d.change(ctx, d.toolstack, "block-detach", "--force", strconv.Itoa(dom.ID), k.VDev)
		if err == nil {
			return
		}
		if _, gone := d.device(ctx, dom.ID, k.VDev); errors.Is(gone, backend.ErrNotExist) {
			return
		}
	}
	d.log.Error("a disk that could not be attached is still there, or may be: detach it by hand (xl block-detach --force)",
		zap.String("domain", dom.Name), zap.String("disk", k.VDev), zap.String("source", k.Source), zap.Error(err))
}

// Detach runs `xl block-detach`, which asks the guest to let go of the disk. ErrBusy: it has not within ten seconds, and has the disk
// as before.
//
// Whether the guest uses the disk is not known on this side, and not every guest refuses: the blkfront of Linux 5.16 and later
// gives up the disk at once, mounted or not, and what uses it there gets I/O errors; those before keep one that is open until it is closed.
// Whoever calls this must have found out from the disk's content that nobody uses it.
func (d *Driver) Detach(ctx context.Context, dom backend.Domain, vdev string) error {
	if dom.ID <= 0 || !vdevSyntax.MatchString(vdev) {
		return fmt.Errorf("domain %d has no disk %.80q that could be detached: %w", dom.ID, vdev, backend.ErrInvalid)
	}
	k, err := d.device(ctx, dom.ID, vdev)
	if err != nil {
		return err
	}
	if err := detaches(d.sysfs); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, attachLimit)
	err = d.change(limited, d.toolstack, "block-detach", strconv.Itoa(dom.ID), vdev)
	cancel()
	if err == nil {
		return nil
	}
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), backLimit)
	defer cancel()
	gone, restoreErr := d.restore(after, dom, vdev, k)
	switch {
	case gone:
		return nil // at the last moment
	case restoreErr != nil:
		return fmt.Errorf("%s does not let go of %s (%v), and is still asked to: %w", dom.Name, vdev, err, restoreErr)
	}
	return fmt.Errorf("%s does not let go of %s (%v): %w", dom.Name, vdev, err, backend.ErrBusy)
}

// detaches says why a Xen of this version must not be asked to detach a disk.
func detaches(sysfs string) error {
	var version [2]int
	for i, name := range []string{"major", "minor"} {
		text, err := os.ReadFile(filepath.Join(sysfs, "hypervisor/version", name))
		if err == nil {
			version[i], err = strconv.Atoi(strings.TrimSpace(string(text)))
		}
		if err != nil {
			return fmt.Errorf("the version of Xen is not known, and some take a disk from a guest that uses it: %w", backend.ErrUnsupported)
		}
	}
	if version[0] < detachMajor || version[0] == detachMajor && version[1] < detachMinor {
		return fmt.Errorf("version %d.%d of Xen takes a disk from a guest that uses it; %d.%d is the first one that does not: %w",
			version[0], version[1], detachMajor, detachMinor, backend.ErrUnsupported)
	}
	return nil
}

// restore takes back that the guest was asked to let go of a disk: else it would lose it at any time later, when nobody expects
// that. gone tells that it has let go.
func (d *Driver) restore(ctx context.Context, dom backend.Domain, vdev string, k *device) (gone bool, err error) {
	if _, err := d.device(ctx, dom.ID, vdev); err != nil {
		return errors.Is(err, backend.ErrNotExist), err
	}
	if k.server != 0 {
		return false, nil // another domain's nodes
	}
	online, err := optional(d.read(ctx, k.back+"/online"))
	if err != nil {
		return false, err
	}
	state, err := d.number(ctx, k.back+"/state")
	if err != nil {
		return false, err
	}
	values := []string{k.back + "/online", "1"}
	switch {
	case online == "" && state == 0:
		return true, nil // its directory has just gone: what would be written now would be the remains of a disk
	case online == "1" && state == stateConnected:
		return false, nil // xl had not got so far
	case state == stateClosing:
		// The toolstack wrote that in the backend's name; the backend itself has not followed.
		values = append(values, k.back+"/state", strconv.Itoa(stateConnected))
	case state > stateClosing:
		return false, fmt.Errorf("it is half detached: xl block-detach --force %d %s ends that: %w", dom.ID, vdev, backend.ErrIO)
	}
	return false, d.change(ctx, d.writer, values...)
}
