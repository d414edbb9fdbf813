package part_test

import (
	"os"
	"slices"
	"testing"

	"domfs/backend/backendtest"
	"domfs/backend/guest/blkid"
	"domfs/backend/guest/part"
)

// TestParts_ReadsWhatTheProberFinds: control asks the Layout whose Types hold the content's
// type, so both must take the same disks for the same tables.
func TestParts_ReadsWhatTheProberFinds(t *testing.T) {
	for _, c := range tables {
		t.Run(c.name, func(t *testing.T) {
			path := newImage(t, c.size)
			c.build(t, path)
			content, err := blkid.New().Probe(openImage(t, path))
			if err != nil || content.Type != "gpt" && content.Type != "dos" {
				t.Fatalf("Probe = %+v, %v", content, err)
			}
			if _, err := part.New().Parts(openImage(t, path)); err != nil {
				t.Errorf("content is %s, but Parts: %v", content.Type, err)
			}
			backendtest.Prober(t, blkid.New(), openImage(t, path), content)
		})
	}
	for name, change := range map[string]func(b []byte){
		"only the primary GPT": func(b []byte) { clear(b[8*mib-512:]) },
		"only the backup GPT":  func(b []byte) { clear(b[512:1024]) },
		"only backup entries":  func(b []byte) { b[1024]++ },
		"no GPT":               func(b []byte) { clear(b[512:1024]); clear(b[8*mib-512:]) },
		"no entries":           func(b []byte) { b[1024]++; b[8*mib-33*512]++ },
	} {
		t.Run(name, func(t *testing.T) {
			path := damagedGPT(t, change)
			content, err := blkid.New().Probe(openImage(t, path))
			if err != nil || !slices.Contains(part.New().Types(), content.Type) {
				t.Fatalf("Probe = %+v, %v: nobody would ask for parts", content, err)
			}
			_, err = part.New().Parts(openImage(t, path))
			if (err == nil) != (content.Type == "gpt") {
				t.Errorf("content is %s, Parts: %v", content.Type, err)
			}
			if err == nil && content.UUID != guid {
				t.Errorf("UUID %s", content.UUID)
			}
		})
	}
	t.Run("a truncated disk", func(t *testing.T) {
		path := damagedGPT(t, func([]byte) {})
		if err := os.Truncate(path, 3*mib); err != nil {
			t.Fatal(err)
		}
		content, err := blkid.New().Probe(openImage(t, path))
		if err != nil || content.Type != "gpt" {
			t.Errorf("Probe = %+v, %v", content, err)
		}
	})
}
