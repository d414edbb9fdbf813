package lvm

import (
	"errors"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/run"
)

func TestExcluded_NamesTheVGThatIsLeftOut(t *testing.T) {
	for _, c := range []struct {
		name string
		vgs  []string
		want string
	}{
		{"--vg", []string{"other"}, "the logical volume a of VG e, which --vg leaves out: mount with --vg=e, too"},
		{"its own", nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, _ := recorded(t, Options{VGs: c.vgs}, 1)
			err := s.Excluded(t.Context(), backend.Disk{Source: "/dev/e/a"})
			if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, backend.ErrUnsupported) || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want %q", err, c.want)
			}
			for _, source := range []string{"/dev/sda", "/srv/a.img", "nbd://h/a", "/dev/e/none"} {
				if err := s.Excluded(t.Context(), backend.Disk{Source: source}); err != nil {
					t.Errorf("%s: %v", source, err)
				}
			}
			volumes, err := s.Volumes(t.Context(), nil)
			if len(volumes) != 0 {
				t.Errorf("%+v, %v", volumes, err)
			}
		})
	}
}

// LVM leaves a VG with another host's system ID out of its report; device-mapper has what is active of it.
func TestExcluded_NamesAVGThatLVMDoesNotShow(t *testing.T) {
	_, info, status := recordedHost(t)
	transcript := &run.Transcript{Calls: []run.Call{{Argv: append([]string{"lvm"}, reportArgs(nil)...), Stdout: []byte(`{"report":[]}`)},
		{Argv: toldInfo, Stdout: []byte(info)}, {Argv: toldStatus, Stdout: []byte(status)}}}
	s := onHost(t, Options{Runner: transcript.Replay()}, info, status)
	err := s.Excluded(t.Context(), backend.Disk{Source: "/dev/e/a"})
	if !errors.Is(err, backend.ErrUnsupported) || !strings.Contains(err.Error(), "VG e, which LVM does not show here") {
		t.Errorf("%v", err)
	}
}
