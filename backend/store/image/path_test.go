package image

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

func TestVolumes_FollowOnlyLinksThatCanBeTrusted(t *testing.T) {
	testneed.Root(t)
	folder := t.TempDir()
	real := filepath.Join(folder, "secret.img")
	if err := os.WriteFile(real, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, target string
		uid          int
		want         error
	}{
		{"ours", real, 0, nil},
		{"relative", "../" + filepath.Base(folder) + "/./secret.img", 0, nil},
		{"theirs", real, 65534, backend.ErrAccess},
		{"chain", filepath.Join(folder, "theirs"), 0, backend.ErrAccess},
		{"loop", filepath.Join(folder, "loop"), 0, backend.ErrInvalid},
		{"dangling", filepath.Join(folder, "nothing"), 0, backend.ErrNotExist},
	} {
		link := filepath.Join(folder, test.name)
		if err := os.Symlink(test.target, link); err != nil {
			t.Fatal(err)
		}
		if err := unix.Lchown(link, test.uid, test.uid); err != nil {
			t.Fatal(err)
		}
		v := volumeOf(t, New(nil, nil, nil), link)
		if !errors.Is(v.Err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, v.Err, test.want)
		}
		if test.want == nil && v.ID != real {
			t.Errorf("%s: ID = %s, want %s", test.name, v.ID, real)
		}
	}
	// A folder that is reached through somebody's link.
	theirs := filepath.Join(folder, "folder")
	if err := os.Symlink(folder, theirs); err != nil {
		t.Fatal(err)
	}
	if err := unix.Lchown(theirs, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if v := volumeOf(t, New(nil, nil, nil), filepath.Join(theirs, "secret.img")); !errors.Is(v.Err, backend.ErrAccess) {
		t.Errorf("through a folder's link: %v", v.Err)
	}
}
