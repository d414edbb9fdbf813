package backend_test

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"domfs/backend"
)

func TestBecause_IsTheSentinelAndSaysTheSentenceOnly(t *testing.T) {
	err := fmt.Errorf("disk xvda: %w", backend.Because(backend.ErrBusy, "%s is in use by %s: %w", "/srv/a.img", "qemu", io.EOF))
	if got, want := err.Error(), "disk xvda: /srv/a.img is in use by qemu: EOF"; got != want {
		t.Errorf("text = %q, want %q", got, want)
	}
	if !errors.Is(err, backend.ErrBusy) || !errors.Is(err, io.EOF) {
		t.Errorf("%v is not both ErrBusy and what it wraps", err)
	}
	if errors.Is(err, backend.ErrInvalid) {
		t.Errorf("%v is ErrInvalid, too", err)
	}
}
