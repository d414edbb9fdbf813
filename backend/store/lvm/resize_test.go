package lvm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/run"
)

func TestResize_GrowsWhatWasLookedAt(t *testing.T) {
	report, info, status := recordedHost(t)
	const sizeBytes, target = 64 << 20, 80 << 20
	line := func(device string) string {
		for line := range strings.Lines(info) {
			if strings.HasSuffix(line, ":"+device+"\n") {
				return line
			}
		}
		t.Fatalf("there is no device %s", device)
		return ""
	}
	renamed := strings.Replace(info, line("e-t"), strings.Replace(line("e-t"), ":e-t\n", ":e-u\n", 1), 1)
	replaced := strings.Replace(info, line("e-t"), strings.Replace(line("e-t"), dmPrefix, dmPrefix+"x", 1), 1)
	for name, c := range map[string]struct {
		info string // just before it grows
		now  int64  // likewise, the size of its device
		want error
	}{
		"as it was":         {info, sizeBytes, nil},
		"renamed":           {renamed, sizeBytes, backend.ErrStale},
		"another of a name": {replaced, sizeBytes, backend.ErrStale},
		"gone":              {strings.Replace(info, line("e-t"), "", 1), sizeBytes, backend.ErrStale},
		"grown by others":   {info, sizeBytes + 4<<20, backend.ErrStale},
	} {
		t.Run(name, func(t *testing.T) {
			transcript := &run.Transcript{Calls: []run.Call{{Argv: append([]string{"lvm"}, reportArgs(nil)...), Stdout: []byte(report)},
				{Argv: toldInfo, Stdout: []byte(info)}, {Argv: toldStatus, Stdout: []byte(status)}, {Argv: toldInfo, Stdout: []byte(c.info)}}}
			if c.want == nil {
				transcript.Calls = append(transcript.Calls, run.Call{Argv: []string{"lvextend", "--yes", "--size", fmt.Sprintf("%db", int64(target)), "--", "e/t"}}, run.Call{Argv: toldInfo, Stdout: []byte(info)})
			}
			s := onHost(t, Options{Runner: transcript.Replay()}, info, status)
			volumes, err := s.Volumes(t.Context(), []backend.Disk{{Source: "/dev/e/t"}})
			if err != nil || volumes[0].Err != nil || volumes[0].SizeBytes != sizeBytes {
				t.Fatalf("%+v, %v", volumes, err)
			}
			f := strings.Split(line("e-t"), ":")
			if err := os.WriteFile(filepath.Join(s.sysfs, "dev/block", f[0]+":"+f[1], "size"), fmt.Appendln(nil, c.now/sectorBytes), 0o644); err != nil {
				t.Fatal(err)
			}
			size, err := s.Resize(t.Context(), volumes[0], target)
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) || err == nil && size != c.now { // no lvextend has changed the device here
				t.Errorf("Resize = %d, %v, want %v", size, err, c.want)
			}
			checkAll(t, transcript)
		})
	}
}
