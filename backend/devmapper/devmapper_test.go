package devmapper

import (
	"context"
	"encoding/binary"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

// name is a struct dm_name_list; next is 0 for the last one.
func name(dev uint64, next uint32, text string) []byte {
	b := binary.NativeEndian.AppendUint64(nil, dev)
	b = binary.NativeEndian.AppendUint32(b, next)
	b = append(b, text+"\x00"...)
	for uint32(len(b)) < next {
		b = append(b, 0)
	}
	return b
}

// target is a struct dm_target_spec with its status, which ends at next, counted from the first.
func target(start, length uint64, next uint32, kind, status string) []byte {
	b := binary.NativeEndian.AppendUint64(nil, start)
	b = binary.NativeEndian.AppendUint64(b, length)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = binary.NativeEndian.AppendUint32(b, next)
	b = append(b, (kind + strings.Repeat("\x00", 16))[:16]...)
	return append(b, status+"\x00"...)
}

func TestParseNames_ReadsEachDevice(t *testing.T) {
	list := slices.Concat(name(unix.Mkdev(253, 0), 32, "a"), name(unix.Mkdev(253, 300), 24, ""), name(unix.Mkdev(253, 7), 0, "vg-lv"))
	got, err := parseNames(list)
	if want := []uint64{unix.Mkdev(253, 0), unix.Mkdev(253, 300), unix.Mkdev(253, 7)}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	for what, none := range map[string][]byte{"no data": nil, "no number": name(0, 0, "")} {
		if got, err := parseNames(none); err != nil || len(got) != 0 {
			t.Errorf("no device at all, %s: %v, %v", what, got, err)
		}
	}
	for what, list := range map[string][]byte{
		"no last":    list[:32],
		"cut off":    list[:11],
		"beyond":     name(1, 400, "a")[:40],
		"itself":     name(1, 4, "a"),
		"next isn't": list[:32+4],
	} {
		if got, err := parseNames(list); !errors.Is(err, backend.ErrIO) {
			t.Errorf("%s: %v, %v", what, got, err)
		}
	}
}

func TestParseTargets_ReadsEachTarget(t *testing.T) {
	data := slices.Concat(target(0, 8, 48, "linear", "1234567"), target(8, 16, 48+64, "snapshot", "16/8192 16 abcd"))
	got, err := parseTargets(data, 2)
	want := []Target{{0, 8 * 512, "linear", "1234567"}, {8 * 512, 16 * 512, "snapshot", "16/8192 16 abcd"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	if got, err := parseTargets(nil, 0); err != nil || len(got) != 0 {
		t.Errorf("no table: %+v, %v", got, err)
	}
	for what, c := range map[string]struct {
		data  []byte
		count uint32
	}{
		"more than fit":  {data, 3},
		"far more":       {data, 1 << 31},
		"itself":         {slices.Concat(target(0, 8, 0, "linear", ""), make([]byte, 100)), 2},
		"too short":      {slices.Concat(target(0, 8, 39, "linear", ""), make([]byte, 100)), 2},
		"beyond":         {slices.Concat(target(0, 8, 400, "linear", ""), make([]byte, 100)), 2},
		"the second":     {slices.Concat(target(0, 8, 48, "linear", "1234567"), make([]byte, 39)), 2},
		"backwards":      {slices.Concat(target(0, 8, 48, "linear", "1234567"), target(8, 8, 40, "linear", "1234567")), 2},
		"more than size": {target(1<<63, 8, 41, "linear", ""), 1},
		"longer":         {target(0, 1<<55, 41, "linear", ""), 1},
	} {
		if got, err := parseTargets(c.data, c.count); !errors.Is(err, backend.ErrIO) {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
	}
}

func FuzzParseAnswers(f *testing.F) {
	f.Add(slices.Concat(name(1, 32, "a"), name(2, 0, "b")), uint32(0))
	f.Add(slices.Concat(target(0, 8, 48, "linear", "1234567"), target(8, 16, 48+56, "snapshot", "16/8192 16 abcd")), uint32(2))
	f.Fuzz(func(t *testing.T, data []byte, count uint32) {
		if numbers, err := parseNames(data); err == nil && len(numbers) > len(data)/nameHead {
			t.Errorf("%d devices in %d bytes", len(numbers), len(data))
		}
		targets, err := parseTargets(data, count)
		if err != nil {
			return
		}
		if len(targets) != int(count) {
			t.Errorf("%d targets of %d", len(targets), count)
		}
		for _, target := range targets {
			if target.StartBytes < 0 || target.SizeBytes < 0 || len(target.Type) > 16 || len(target.Status) > len(data) {
				t.Errorf("%+v", target)
			}
		}
	})
}

func TestControl_SaysWhatIsNotThere(t *testing.T) {
	c := New(filepath.Join(t.TempDir(), "control"))
	if d, err := c.Devices(t.Context()); !errors.Is(err, backend.ErrNotExist) || !strings.Contains(err.Error(), "control") {
		t.Errorf("Devices = %+v, %v", d, err)
	}
	c = New("/dev/null")
	if d, err := c.Devices(t.Context()); !errors.Is(err, backend.ErrUnsupported) {
		t.Errorf("Devices = %+v, %v of what is not device-mapper", d, err)
	}
	if d, err := c.StatusOf(t.Context(), strings.Repeat("x", 129)); !errors.Is(err, backend.ErrNoDevice) {
		t.Errorf("StatusOf = %+v, %v of a UUID that is too long", d, err)
	}
}

// What waits in the kernel cannot be interrupted, and holds up nobody.
func TestControl_LeavesBehindWhatDoesNotAnswer(t *testing.T) {
	c := New("/dev/null")
	release := make(chan struct{})
	for range maxAsking {
		short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if _, err := c.ask(short, "ask", func(*query) ([]Device, error) { <-release; return nil, nil }); !errors.Is(err, backend.ErrTimeout) {
			t.Errorf("%v of what does not answer", err)
		}
	}
	var asked atomic.Bool
	f := func(*query) ([]Device, error) { asked.Store(true); return []Device{{Name: "a"}}, nil }
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.ask(short, "ask", f); !errors.Is(err, backend.ErrTimeout) || asked.Load() {
		t.Errorf("%v: as many as may be wait in the kernel, and one more is begun: %t", err, asked.Load())
	}
	close(release)
	if d, err := c.ask(t.Context(), "ask", f); err != nil || len(d) != 1 {
		t.Errorf("%+v, %v after all were answered", d, err)
	}
	if _, err := c.ask(t.Context(), "ask", func(*query) ([]Device, error) { panic("a defect") }); !errors.Is(err, backend.ErrIO) || !strings.Contains(err.Error(), "a defect") {
		t.Errorf("%v of a defect", err)
	}
}
