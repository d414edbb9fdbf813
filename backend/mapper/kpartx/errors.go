package kpartx

import (
	"errors"
	"fmt"
	"strings"

	"domfs/backend"
	"domfs/backend/run"
)

// reasons are what dmsetup and kpartx write to standard error, and what it means; the first match counts.
var reasons = []struct {
	text     string
	sentinel error
}{
	{"Device or resource busy", backend.ErrBusy},
	{"Permission denied", backend.ErrAccess},
	{"Operation not permitted", backend.ErrPermission},
	{"Cannot allocate memory", backend.ErrNoSpace},
	{"No such device or address", backend.ErrNoDevice},
	{"No such file or directory", backend.ErrNoDevice},
	{"is device-mapper driver missing from kernel?", backend.ErrUnsupported},
	{"device mapper prerequisites not met", backend.ErrUnsupported},
}

// failure says which of backend's errors a tool's failure is: ErrIO where nothing is known of it.
func failure(err error) error {
	var tool *run.Error
	if !errors.As(err, &tool) || tool.Err != nil {
		return err // it did not run to its end, which says what it is
	}
	for _, r := range reasons {
		if strings.Contains(tool.Stderr, r.text) {
			return fmt.Errorf("%w: %w", r.sentinel, err)
		}
	}
	return fmt.Errorf("%w: %w", backend.ErrIO, err)
}
