package lvm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"domfs/backend"
	"domfs/backend/run"

	"go.uber.org/zap"
)

// changeTimeout is the deadline of one tool that changes something. Until SIGKILL ends it LVM ignores signals where
// it has devices suspended.
const changeTimeout = 60 * time.Second

// Udev makes an LV's node; LVM waits for udev, but not for a node that a rule of somebody's renames.
const (
	nodeTimeout = 5 * time.Second
	nodePause   = 10 * time.Millisecond
)

// change runs a tool that changes something for what ("snapshot vg0/web-01"), and returns what it said: nothing, where
// it found nothing to change. Once begun it is not given up: a tool that is killed in its midst leaves devices suspended. One that is
// killed all the same, by its deadline or by others, has them resumed.
func (s *Store) change(ctx context.Context, what, tool string, args ...string) (said string, err error) {
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("%s: %w", what, ctxError(ctx))
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeTimeout)
	defer cancel()
	defer s.changed()
	out, err := s.run.Run(ctx, tool, args...)
	if wasKilled(err) {
		if again := s.resume(context.WithoutCancel(ctx)); again != nil {
			s.log.Error("a tool was killed, and what it had suspended may still be so: dmsetup info shows it, vgchange --refresh resumes it", zap.String("for", what), zap.Error(again))
		}
	}
	var failed *run.Error
	switch {
	case errors.As(err, &failed) && errors.Is(failed.Err, backend.ErrNotExist):
		return "", backend.Because(backend.ErrUnsupported, "%v", toolFailed(what, err)) // the tool is gone, not what it was to change
	case err != nil:
		return "", toolFailed(what, err)
	}
	return string(bytes.TrimSpace(out)), nil
}

// ctxError is the error of a context that ended.
func ctxError(ctx context.Context) error {
	if ctx.Err() == context.DeadlineExceeded {
		return fmt.Errorf("%w: %w", backend.ErrTimeout, ctx.Err())
	}
	return ctx.Err()
}

// awaitNode waits until an LV's node is there, or is gone.
func awaitNode(path string, there bool) error {
	deadline := time.Now().Add(nodeTimeout)
	for {
		_, err := os.Stat(path)
		if (err == nil) == there {
			return nil
		}
		if time.Now().After(deadline) {
			return backend.Because(backend.ErrTimeout, "udev has not made %s within %s", path, nodeTimeout)
		}
		time.Sleep(nodePause)
	}
}

// retry tries f again while it is ErrBusy: udev has a device open for an instant each time that it hears
// of it.
func retry(ctx context.Context, f func() error) error {
	const (
		limit = 5 * time.Second
		first = 50 * time.Millisecond
		most  = time.Second
	)
	deadline := time.Now().Add(limit)
	for pause := first; ; pause = min(2*pause, most) {
		err := f()
		if !isBusy(err) || time.Now().Add(pause).After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}
