package ext4

import (
	"os"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"
)

func useOf(t *testing.T, path string) (backend.Use, string) {
	t.Helper()
	u, why, err := New().Use(openDevice(t, path))
	if err != nil {
		t.Fatal(err)
	}
	return u, why
}

func TestUse_FollowsTheKernelsMount(t *testing.T) {
	testneed.Loop(t)
	for name, c := range map[string]struct {
		fsType string
		args   []string
	}{
		"ext2":      {"ext2", []string{"-t", "ext2"}},
		"ext3":      {"ext3", []string{"-t", "ext3"}},
		"ext4":      {"ext4", []string{"-t", "ext4"}},
		"nojournal": {"ext4", []string{"-t", "ext4", "-O", "^has_journal"}},
		"mmp":       {"ext4", []string{"-t", "ext4", "-O", "mmp"}},
		"old":       {"ext4", []string{"-t", "ext4", "-O", "^metadata_csum,^64bit", "-b", "1024"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := mkfs(t, 16, false, c.args...)
			want := func(when string, want backend.Use) {
				t.Helper()
				if u, why := useOf(t, path); u != want || (u == backend.Unused) != (why == "") {
					t.Errorf("%s: %d %q, want %d", when, u, why, want)
				}
			}
			want("new", backend.Unused)
			_, umount := mountType(t, c.fsType, path, "rw")
			want("just mounted, with nothing written", backend.InUse)
			umount()
			want("unmounted", backend.Unused)
			dir, umount := mountType(t, c.fsType, path, "rw")
			must(t, os.WriteFile(dir+"/a", []byte("a"), 0o644))
			syncFS(t, dir)
			want("written to", backend.InUse)
			crashed, err := os.ReadFile(path)
			must(t, err)
			umount()
			want("unmounted again", backend.Unused)
			must(t, os.WriteFile(path, crashed, 0o600))
			want("cut off", backend.InUse)
		})
	}
}

func TestUse_OfWhatIsNoFilesystemIsUnknown(t *testing.T) {
	path := mkfs(t, 4, false, "-t", "ext4", "-O", "mmp")
	image, err := os.ReadFile(path)
	must(t, err)
	mmp := int64(image[superOffset+0x168]) | int64(image[superOffset+0x169])<<8
	block := int64(1024) << image[superOffset+0x18]
	for name, change := range map[string]func(b []byte) []byte{
		"cut off":        func(b []byte) []byte { return b[:1500] },
		"empty":          func([]byte) []byte { return nil },
		"no magic":       func(b []byte) []byte { b[superOffset+0x38] = 0; return b },
		"wrong checksum": func(b []byte) []byte { b[superOffset+0x3fd]++; return b },
		"no mmp":         func(b []byte) []byte { b[mmp*block] = 0; return b },
		"cut off at mmp": func(b []byte) []byte { return b[:mmp*block] },
	} {
		b := change(append([]byte(nil), image...))
		if u, why, err := New().Use(inMemory(b)); u != backend.UseUnknown || why == "" || err != nil {
			t.Errorf("%s: %d %q %v", name, u, why, err)
		}
	}
}

func FuzzUse(f *testing.F) {
	for _, features := range []string{"mmp", "^has_journal", "^metadata_csum,mmp"} {
		b, err := os.ReadFile(mkfs(f, 4, false, "-t", "ext4", "-O", features))
		must(f, err)
		f.Add(b[:64<<10])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		u, why, err := New().Use(inMemory(b))
		if err != nil || (u == backend.Unused) != (why == "") {
			t.Errorf("%d %q %v", u, why, err)
		}
	})
}
