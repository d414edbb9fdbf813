package lvm

import (
	"errors"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/run"
)

// sharedHost is the recorded host, whose VG is lvmlockd's; it is asked several times over.
func sharedHost(t *testing.T, times int) (*Store, *run.Transcript) {
	t.Helper()
	report, info, status := recordedHost(t)
	const alone = `"vg_shared":"0"`
	if !strings.Contains(report, alone) {
		t.Fatal("the recorded VG has no vg_shared")
	}
	report = strings.ReplaceAll(report, alone, `"vg_shared":"1"`)
	transcript := &run.Transcript{}
	for range times {
		transcript.Calls = append(transcript.Calls, run.Call{Argv: append([]string{"lvm"}, reportArgs(nil)...), Stdout: []byte(report)},
			run.Call{Argv: toldInfo, Stdout: []byte(info)},
			run.Call{Argv: toldStatus, Stdout: []byte(status)})
	}
	return onHost(t, Options{Runner: transcript.Replay()}, info, status), transcript
}

// No tool that changes anything is in the transcript.
func TestChanges_InASharedVGAreRefusedBeforeAnythingIsTouched(t *testing.T) {
	s, transcript := sharedHost(t, 1)
	volumes, err := s.Volumes(t.Context(), []backend.Disk{{Source: "/dev/e/t"}})
	if err != nil || volumes[0].Err != nil {
		t.Fatalf("it cannot be read: %+v, %v", volumes, err)
	}
	refused := func(err error) {
		t.Helper()
		if !errors.Is(err, backend.ErrUnsupported) || !strings.Contains(err.Error(), "lvmlockd") {
			t.Errorf("%v", err)
		}
	}
	req := backend.SnapshotRequest{Origin: volumes[0], Meta: backend.SnapshotMeta{Set: "20260101T000000000-abcdef", Name: "s", DomainName: "web01", DiskCount: 1, Disk: backend.Disk{VDev: "xvda"}}}
	g, err := s.Prepare(t.Context(), []backend.SnapshotRequest{req}, true)
	if g != nil {
		t.Error("there is a guard")
	}
	refused(err)
	_, err = s.Resize(t.Context(), volumes[0], 128<<20)
	refused(err)
	if err := transcript.Check(); err != nil {
		t.Error(err)
	}
}
