package image

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

// backings is a folder of images that the admin has named, one that nobody has named, and a link to a folder that is named.
type backings struct {
	t                    *testing.T
	named, secret, link  string
	base                 []byte
	s                    *Store
	secretFile, overFile string
}

func newBackings(t *testing.T) *backings {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	b := &backings{t: t, named: dir + "/named", secret: dir + "/secret", link: dir + "/link"}
	b.secretFile, b.overFile = b.secret+"/secret.raw", b.named+"/vm/over.qcow2"
	b.do(os.MkdirAll(b.named+"/vm", 0o755))
	b.do(os.MkdirAll(b.named+"/templates/old", 0o755))
	b.do(os.Mkdir(b.secret, 0o755))
	b.do(os.Symlink(b.named, b.link))
	b.base = bytes.Repeat([]byte("template"), 1<<17)
	b.do(os.WriteFile(b.named+"/templates/base.raw", b.base, 0o644))
	b.do(os.WriteFile(b.secretFile, bytes.Repeat([]byte("secret! "), 1<<17), 0o644))
	b.s = New([]string{b.link}, formats, nil)
	return b
}

func (b *backings) do(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// over is the volume of an image that names a raw backing file.
func (b *backings) over(name string) backend.Volume {
	b.t.Helper()
	qemuImage(b.t, b.overFile, 1<<20, "raw:"+name)
	return qcow2Volume(b.t, b.s, b.overFile)
}

func TestBackingFile_IsFollowedInsideOfNamedFoldersOnly(t *testing.T) {
	testneed.Root(t)
	b := newBackings(t)
	for link, target := range map[string]string{
		"templates/ours.raw":      "base.raw",
		"templates/old/up.raw":    "../base.raw",
		"templates/abs.raw":       b.named + "/templates/base.raw",
		"templates/by-link.raw":   b.link + "/templates/base.raw",
		"templates/out.raw":       b.secretFile,
		"templates/out-rel.raw":   "../../secret/secret.raw",
		"templates/loop.raw":      "loop.raw",
		"templates/theirs.raw":    "base.raw",
		"templates/folder":        "old/..",
		"templates/secret-folder": b.secret,
		"templates/passwd":        "/etc/passwd",
		"templates/zero":          "/dev/zero",
	} {
		b.do(os.Symlink(target, filepath.Join(b.named, link)))
	}
	b.do(unix.Lchown(b.named+"/templates/theirs.raw", 65534, 65534))
	b.do(unix.Mkfifo(b.named+"/templates/fifo", 0o644))
	b.do(unix.Mknod(b.named+"/templates/device", unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))))
	for _, test := range []struct {
		name string
		want error  // nil: it is the template
		says string // in the error
	}{
		{"../templates/base.raw", nil, ""},
		{".././/templates/./base.raw", nil, ""},
		{"../../named/templates/base.raw", nil, ""},
		{"../vm/../templates/base.raw", nil, ""},
		{b.named + "/templates/base.raw", nil, ""},
		{b.link + "/templates/base.raw", nil, ""},
		{"file:" + b.named + "/templates/base.raw", nil, ""},
		{"../templates/ours.raw", nil, ""},
		{"../templates/old/up.raw", nil, ""},
		{"../templates/abs.raw", nil, ""},
		{"../templates/by-link.raw", nil, ""},
		{"../templates/folder/base.raw", nil, ""},

		{b.secretFile, backend.ErrAccess, "--image-dir=" + b.secret},
		{"../../secret/secret.raw", backend.ErrAccess, "--image-dir=" + b.secret},
		{"../../../../../../../../../../etc/passwd", backend.ErrAccess, "--image-dir=/etc"},
		{"/etc/shadow", backend.ErrAccess, "--image-dir=/etc"},
		{"/no/such/file", backend.ErrAccess, "--image-dir=/no/such"},
		{b.named + "-not/base.raw", backend.ErrAccess, "--image-dir=" + b.named + "-not"},
		{b.named + "/../secret/secret.raw", backend.ErrAccess, "--image-dir=" + b.secret},
		{b.secret + "/../named/templates/base.raw", backend.ErrAccess, `without ".."`},
		{"../templates/out.raw", backend.ErrAccess, "--image-dir=" + b.secret},
		{"../templates/out-rel.raw", backend.ErrAccess, "--image-dir=" + b.secret},
		{"../templates/secret-folder/secret.raw", backend.ErrAccess, "--image-dir=" + b.secret},
		{"../templates/passwd", backend.ErrAccess, "--image-dir=/etc"},
		{"../templates/zero", backend.ErrAccess, "--image-dir=/dev"},
		{"../templates/theirs.raw", backend.ErrAccess, "user 65534"},
		{"../templates/loop.raw", backend.ErrInvalid, "symbolic links"},
		{"../templates/fifo", backend.ErrUnsupported, "FIFO"},
		{"../templates/device", backend.ErrUnsupported, "device"},
		{"../templates", backend.ErrIsDirectory, b.named + "/templates"},
		{b.named, backend.ErrIsDirectory, b.named},
		{"../templates/base.raw/x", backend.ErrNotDir, "base.raw"},
		{"../templates/none.raw", backend.ErrNotExist, "none.raw"},
		{"../" + strings.Repeat("d/", 100) + "x", backend.ErrNotExist, "find"},
		{strings.Repeat("x", 300), backend.ErrTooLong, "xxx"},

		{"file:../templates/base.raw", backend.ErrUnsupported, `"file:"`},
		{"file:base.raw", backend.ErrUnsupported, `"file:"`},
		{"nbd:localhost:10809", backend.ErrUnsupported, `"nbd:"`},
		{"nbd://localhost/disk", backend.ErrUnsupported, `"nbd:"`},
		{"json:{}", backend.ErrUnsupported, `"json:"`},
		{`json:{"driver":"raw","file":{"driver":"file","filename":"` + b.secretFile + `"}}`, backend.ErrUnsupported, `"json:"`},
		{"host_device:/dev/sda", backend.ErrUnsupported, `"host_device:"`},
		{"fat:rw:/etc", backend.ErrUnsupported, `"fat:"`},
		{"https://example.org/x", backend.ErrUnsupported, `"https:"`},
		{"/dev/zero", backend.ErrAccess, "--image-dir=/dev"},
		{"a\nb", backend.ErrNotExist, `"a\nb"`},
	} {
		v := b.over(test.name)
		d, err := b.s.Open(t.Context(), v)
		if err == nil {
			d.Close()
		}
		if test.want == nil {
			if v.Err != nil || err != nil || !bytes.Equal(contents(t, b.s, v), b.base) {
				t.Errorf("%q: %v, %v; want the template", test.name, v.Err, err)
			}
			continue
		}
		for _, err := range []error{v.Err, err} {
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), b.overFile) {
				t.Errorf("%q: %v; want %v, with %q", test.name, err, test.want, test.says)
			} else if strings.ContainsAny(strings.ReplaceAll(err.Error(), "a\nb", ""), "\n\x1b") || len(err.Error()) > 1500 {
				t.Errorf("%q: %q is no sentence on one line", test.name, err)
			}
		}
	}
}

// The folder that is mounted or linked elsewhere is known by what its names say and by where it is.
func TestBackingFile_OfAnImageInANamedLinkIsFound(t *testing.T) {
	b := newBackings(t)
	qemuImage(t, b.overFile, 1<<20, "raw:../templates/base.raw")
	v := qcow2Volume(t, b.s, b.link+"/vm/over.qcow2")
	if v.Err != nil || v.ID != b.overFile || !bytes.Equal(contents(t, b.s, v), b.base) {
		t.Errorf("Volumes = %+v", v)
	}
	// One file that is linked into another folder: QEMU looks beside the link.
	other := filepath.Join(b.named, "templates/link.qcow2")
	b.do(os.Symlink(b.overFile, other))
	v = qcow2Volume(t, b.s, other)
	if v.Err != nil && !strings.Contains(v.Err.Error(), b.overFile) || v.Err == nil {
		t.Errorf("Err = %v of an image that is linked into another folder", v.Err)
	}
	// So it does for what lies behind.
	b.do(os.WriteFile(b.named+"/templates/old/here.raw", b.base, 0o644))
	b.do(os.WriteFile(b.named+"/templates/here.raw", bytes.Repeat([]byte("wrong one"), 1<<17), 0o644))
	mid, top := b.named+"/templates/mid.qcow2", b.named+"/vm/top.qcow2"
	qemuImage(t, mid, 1<<20, "raw:here.raw")
	b.do(os.Symlink("../mid.qcow2", b.named+"/templates/old/mid.qcow2"))
	qemuImage(t, top, 1<<20, "qcow2:../templates/old/mid.qcow2")
	v = qcow2Volume(t, b.s, top)
	if v.Err != nil || !bytes.Equal(contents(t, b.s, v), qemuSees(t, top)) {
		t.Errorf("a linked backing file: Err = %v, or other bytes than QEMU's", v.Err)
	}
}

// Whoever may write to an image folder swaps a folder and a file of it for links to a secret as fast as they can.
func TestBackingFile_IsNeverASecretWhateverIsSwapped(t *testing.T) {
	b := newBackings(t)
	v := b.over("../templates/base.raw")
	if v.Err != nil {
		t.Fatal(v.Err)
	}
	b.do(os.WriteFile(b.secret+"/base.raw", bytes.Repeat([]byte("secret! "), 1<<17), 0o644))
	b.do(os.Symlink(b.secret, b.named+"/to-folder"))
	b.do(os.Symlink(b.secretFile, b.named+"/templates/to-file"))
	exchange := func(one, other string) {
		_ = unix.Renameat2(unix.AT_FDCWD, b.named+"/"+one, unix.AT_FDCWD, b.named+"/"+other, unix.RENAME_EXCHANGE)
	}
	stop := make(chan struct{})
	var swaps sync.WaitGroup
	swaps.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			exchange("templates", "to-folder")
			exchange("templates", "to-folder")
			exchange("templates/base.raw", "templates/to-file")
			exchange("templates/base.raw", "templates/to-file")
		}
	})
	read, refused := 0, 0
	for range 1500 {
		d, err := b.s.Open(t.Context(), v)
		if err != nil {
			refused++
			continue
		}
		got := make([]byte, 8)
		_, err = d.ReadAt(got, 4096)
		d.Close()
		if err != nil || string(got) != "template" {
			t.Fatalf("read %q, %v", got, err)
		}
		read++
	}
	close(stop)
	swaps.Wait()
	if read == 0 || refused == 0 {
		t.Errorf("%d opens read the template and %d were refused: this test shows nothing", read, refused)
	}
}

func TestBackingFile_ChainsAreBounded(t *testing.T) {
	folder := t.TempDir()
	at := func(i int) string { return fmt.Sprintf("%s/l%04d.qcow2", folder, i) }
	qemuImage(t, at(0), 1<<20, "qcow2:l0001.qcow2", "-o", "cluster_size=512") // small files
	first, err := os.ReadFile(at(0))
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i < 1000; i++ {
		image := bytes.Replace(first, []byte("l0001"), fmt.Appendf(nil, "l%04d", i+1), 1)
		if err := os.WriteFile(at(i), image, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := New([]string{folder}, formats, nil)
	if err := qcow2Volume(t, s, at(0)).Err; !errors.Is(err, backend.ErrUnsupported) || !strings.Contains(err.Error(), fmt.Sprint(maxChain-1)) {
		t.Errorf("a chain of 1000: %v", err)
	}
	end := at(999)
	qemuImage(t, end, 1<<20, "")
	for i, want := range []error{nil, backend.ErrUnsupported} {
		length := maxChain + i
		// The end of the chain is replaced by an image that stands alone.
		if err := os.Remove(at(length - 1)); err != nil {
			t.Fatal(err)
		}
		if err := os.Link(end, at(length-1)); err != nil {
			t.Fatal(err)
		}
		v := qcow2Volume(t, s, at(0))
		if !errors.Is(v.Err, want) || want == nil && v.Err != nil {
			t.Errorf("a chain of %d: %v, want %v", length, v.Err, want)
		}
		if want == nil {
			if got := contents(t, s, v); len(bytes.Trim(got, "\x00")) != 0 {
				t.Error("a chain of empty images is not empty")
			}
		}
		if err := os.Remove(at(length - 1)); err != nil { // or the image that stands alone would be written
			t.Fatal(err)
		}
		if err := os.WriteFile(at(length-1), bytes.Replace(first, []byte("l0001"), fmt.Appendf(nil, "l%04d", length), 1), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, chain := range map[string][]string{
		"itself": {"l0000.qcow2"},
		"a ring": {"l0001.qcow2", "l0002.qcow2", "l0001.qcow2"},
	} {
		for i, backing := range chain {
			os.Remove(at(i))
			qemuImage(t, at(i), 1<<20, "qcow2:"+backing)
		}
		if err := qcow2Volume(t, s, at(0)).Err; !errors.Is(err, backend.ErrCorrupt) || !strings.Contains(err.Error(), "behind it again") {
			t.Errorf("%s: %v", name, err)
		}
	}
	before := openDescriptors(t)
	for range 3 {
		qcow2Volume(t, s, at(0))
	}
	if after := openDescriptors(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestBackingPath_IsAsQEMUUnderstandsIt(t *testing.T) {
	for name, want := range map[string]string{
		"base.raw":           "/images/vm/base.raw",
		"./a:b":              "/images/vm/a:b",
		"../base":            "/images/base",
		"../../../../base":   "/base",
		"x/../base":          "/images/vm/x/../base",
		"/abs/./x":           "/abs/./x",
		"file:/abs/x":        "/abs/x",
		"file:///abs/x":      "///abs/x",
		"a:b":                "",
		"file:x":             "",
		"file:":              "",
		":":                  "",
		"nul\x00":            "",
		"x" + "/" + "a:b":    "/images/vm/x/a:b",
		"json:{\"a\":\"b\"}": "",
	} {
		got, err := backingPath(name, "/images/vm")
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v, want %q", name, got, err, want)
		}
	}
}

func FuzzBackingPath(f *testing.F) {
	for _, name := range []string{"base.raw", "../x", "/x/../../y", "file:/a", "nbd://x", "json:{}", "a/../../..", "\x00", "//", "."} {
		f.Add(name)
	}
	dir := f.TempDir()
	if err := os.MkdirAll(dir+"/named/vm", 0o755); err != nil {
		f.Fatal(err)
	}
	if err := os.Symlink("/etc", dir+"/named/etc"); err != nil {
		f.Fatal(err)
	}
	s := New([]string{dir + "/named"}, nil, nil)
	folders := s.namedFolders()
	f.Fuzz(func(t *testing.T, name string) {
		path, err := backingPath(name, dir+"/named/vm")
		if err != nil {
			return
		}
		if !filepath.IsAbs(path) {
			t.Fatalf("%q: %q is not absolute", name, path)
		}
		l, err := openBeneath(folders, path)
		if err != nil {
			return
		}
		defer l.at.Close()
		if !strings.HasPrefix(l.path, folders[0].real+"/") {
			t.Fatalf("%q leads to %s", name, l.path)
		}
	})
}
