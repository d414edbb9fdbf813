package backend_test

import (
	"errors"
	"strings"
	"testing"

	"domfs/backend"
)

// named is a Format with nothing but a name.
type named string

func (n named) Name() string { return string(n) }
func (named) Header(backend.Device) (backend.FormatHeader, error) {
	return backend.FormatHeader{}, backend.ErrUnsupported
}
func (named) Open(_, _ backend.Device) (backend.Device, error) { return nil, backend.ErrUnsupported }

func TestFindFormat_SaysWhatIsRead(t *testing.T) {
	formats := []backend.Format{named("qed"), named("qcow2")}
	for _, name := range []string{"", "raw"} {
		if f, err := backend.FindFormat(formats, name); f != nil || err != nil {
			t.Errorf("FindFormat(%q) = %v, %v", name, f, err)
		}
	}
	if f, err := backend.FindFormat(formats, "qcow2"); f != formats[1] || err != nil {
		t.Errorf("FindFormat = %v, %v", f, err)
	}
	if f, err := backend.FindFormat(formats, "vhd"); f != nil || !errors.Is(err, backend.ErrUnsupported) || err.Error() != "vhd is not read, only raw, qed and qcow2" {
		t.Errorf("FindFormat = %v, %v", f, err)
	}
	if _, err := backend.FindFormat(nil, strings.Repeat("x", 5000)); !errors.Is(err, backend.ErrUnsupported) || len(err.Error()) > 400 || !strings.HasSuffix(err.Error(), "only raw") {
		t.Errorf("FindFormat = %v", err)
	}
}
