package part_test

import (
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/guest/part"
)

func TestWarnings_TellThatTheBackupGPTWasRead(t *testing.T) {
	for name, c := range map[string]struct {
		change func(b []byte)
		want   string // "" for none
	}{
		"intact":                  {func([]byte) {}, ""},
		"primary header zeroed":   {func(b []byte) { clear(b[512:1024]) }, "no GPT header"},
		"primary header checksum": {func(b []byte) { b[512+56]++ }, "checksum"},
		"primary entries":         {func(b []byte) { b[1024+32]++ }, "the checksum of its entries"},
		"backup header":           {func(b []byte) { clear(b[8*mib-512:]) }, ""},
		"both":                    {func(b []byte) { clear(b[512:1024]); clear(b[8*mib-512:]) }, ""},
		"no table":                {func(b []byte) { clear(b[:1024]) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			d := openImage(t, damagedGPT(t, c.change))
			got := part.New().(backend.PartWarner).Warnings(d)
			switch {
			case c.want == "" && len(got) != 0:
				t.Errorf("warns of %q", got)
			case c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want) || !strings.Contains(got[0], "backup of it was read")):
				t.Errorf("warns of %q, want %q", got, c.want)
			}
		})
	}
}
