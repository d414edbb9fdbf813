package xlcfg

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest"
	"domfs/backend/backendtest/testneed"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

var update = flag.Bool("update", false, "write the golden files")

func TestDriver_KeepsTheContract(t *testing.T) {
	backendtest.Hypervisor(t, func(t *testing.T) backend.Hypervisor {
		return New([]string{"testdata/host", "testdata/host/auto"}, nil)
	})
}

// list is what Domains says, by name.
func list(t *testing.T, d *Driver) map[string]backend.Domain {
	t.Helper()
	domains, err := d.Domains(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]backend.Domain{}
	for _, dom := range domains {
		if _, ok := m[dom.Name]; ok {
			t.Errorf("two domains are named %q", dom.Name)
		}
		m[dom.Name] = dom
	}
	return m
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func names(m map[string]backend.Domain) []string {
	var out []string
	for name := range m {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

func TestDomains_ReadsAHostAsRecorded(t *testing.T) {
	domains, err := New([]string{"testdata/host", "testdata/host/auto"}, nil).Domains(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	type shown struct {
		backend.Domain
		Err string
	}
	var all []shown
	for _, d := range domains {
		s := shown{Domain: d}
		if d.Err != nil {
			s.Err = d.Err.Error()
		}
		all = append(all, s)
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(all); err != nil {
		t.Fatal(err)
	}
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	got := bytes.ReplaceAll(buf.Bytes(), []byte(wd+"/testdata/host"), []byte("/etc/xen"))
	const golden = "testdata/host.golden"
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("differs from %s (-update writes it); got:\n%s", golden, got)
	}
}

func TestDomains_ShowsABrokenFileAndAllOthers(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.cfg"), "name = 'a'\ndisk = [ 'phy:/dev/vg/a,xvda,w' ]\n")
	write(t, filepath.Join(dir, "z.cfg"), "name = 'z'\n")
	for i, c := range []struct {
		name, text string
		domain     string // the name it is to be shown by
		fault      string
		sentinel   error
	}{
		{"m.cfg", "name = 'm'\nmemory = 12 * 1024\n", "m", "/m.cfg:2: ", backend.ErrInvalid},
		{"m.cfg", "memory = 12 * 1024\nname = 'later'\n", "later", "/m.cfg:1: ", backend.ErrInvalid},
		{"m.cfg", "name = 'm\n", "m", "/m.cfg:1: ", backend.ErrInvalid},
		{"m.cfg", "disk = [\n\n'phy:/x,xvda,w'\n", "m", "/m.cfg:1: ", backend.ErrInvalid},
		{"m.cfg", "", "m", "has no name=", backend.ErrInvalid},
		{"m.cfg", "name = ''\n", "m", "/m.cfg:1: name is empty", backend.ErrInvalid},
		{"m.cfg", "name = []\n", "m", "/m.cfg:1: name is a list", backend.ErrInvalid},
		{"m.cfg", "\x7fELF\x00\x00\x01", "m", "/m.cfg:1: ", backend.ErrInvalid},
		{"m.cfg", "name = 'a\x00b'", "m", "/m.cfg:1: ", backend.ErrInvalid},
		{"m.cfg", "name = 'm'\ndisk = [ '/a=b,raw,xvda' ]\n", "m", "/m.cfg:2: ", backend.ErrInvalid},
		{"m.cfg", "name = 'm'\ndisk = [\n '/a,raw,../xvda' ]\n", "m", "/m.cfg:3: ", backend.ErrInvalid},
		{"m.cfg", "name = 'm'\ndisk = [ ['a'] ]\n", "m", "/m.cfg:2: a disk is a list", backend.ErrInvalid},
		{"m.cfg", "name = 'm'\nx = " + strings.Repeat("[", 100) + strings.Repeat("]", 100) + "\n", "m", "nested", backend.ErrInvalid},
		{"m.cfg", "name = 'm'\nx = [" + strings.Repeat("0,", maxValues) + "]\n", "m", "values", backend.ErrInvalid},
		{"m.cfg", "name = 'm'\n#" + strings.Repeat("x", maxFileBytes), "m", "bytes", backend.ErrInvalid},
		{"m.cfg", "name = 'x/y'\n", "x%2Fy", "cannot name a folder", backend.ErrInvalid},
		{"m.cfg", "name = '..'\n", "%2E%2E", "cannot name a folder", backend.ErrInvalid},
		{"m.cfg", "name = '.'\n", "%2E", "cannot name a folder", backend.ErrInvalid},
		{"m.cfg", "name = '" + strings.Repeat("n", 300) + "'\n", strings.Repeat("n", 255), "cannot name a folder", backend.ErrInvalid},
		{"m.cfg", "name = 'a'\n", "a@m.cfg", "/a.cfg has a domain of the name a, too", backend.ErrExist},
		{"0.cfg", "name = 'a'\n!\n", "a@0.cfg", "/0.cfg:2: ", backend.ErrInvalid}, // sorts before the good one
		{"m.cfg", "name = 'm'\ndisk = [" + manyDisks(maxDisks+1) + "]\n", "m", "more than 256 disks", backend.ErrInvalid},
	} {
		path := filepath.Join(dir, c.name)
		write(t, path, c.text)
		got := list(t, New([]string{dir}, nil))
		d, ok := got[c.domain]
		if !ok || len(got) != 3 || got["a"].Err != nil || len(got["a"].Disks) != 1 || got["z"].Err != nil {
			t.Errorf("case %d: domains are %q, want a and z unharmed and %q", i, names(got), c.domain)
		} else if d.Err == nil || !strings.Contains(d.Err.Error(), c.fault) || !errors.Is(d.Err, c.sentinel) {
			t.Errorf("case %d: error is %v, want one with %q that is %v", i, d.Err, c.fault, c.sentinel)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func manyDisks(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "'/srv/%d,raw,d%dp0',", i, i)
	}
	return b.String()
}

func TestDomains_NamesStayUniqueHoweverTheyClash(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct{ name, text string }{
		{"a.cfg", "name='a'"}, {"b.cfg", "name='a'"}, {"c.cfg", "name='a@b.cfg'"}, {"d.cfg", "!"}, {"e.cfg", "name='d'"}, {"sub/b.cfg", "name='a'"},
		{strings.Repeat("l", 250) + ".cfg", "name='a'"},
	} {
		write(t, filepath.Join(dir, c.name), fmt.Sprintf("%s\nuuid='00000000-0000-0000-0000-00000000000%d'\n", c.text, i/2))
	}
	domains, err := New([]string{dir, dir + "/sub"}, nil).Domains(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for _, d := range domains {
		if seen[d.Name] != "" {
			t.Errorf("%s and %s are both named %q", seen[d.Name], d.Config, d.Name)
		}
		seen[d.Name] = d.Config
		if len(d.Name) > backend.MaxNameBytes {
			t.Errorf("the name %q is too long", d.Name)
		}
	}
	if len(seen) != 7 {
		t.Errorf("%d domains, want 7: %q", len(seen), seen)
	}
	for name, base := range map[string]string{"a": "a.cfg", "a@b.cfg": "c.cfg", "d": "e.cfg", "a@b.cfg.2": "b.cfg", "d@d.cfg": "d.cfg"} {
		if filepath.Base(seen[name]) != base {
			t.Errorf("%q is %s, want %s", name, seen[name], base)
		}
	}
	equal := 0
	for _, d := range domains {
		for _, w := range d.Warnings {
			if strings.Contains(w, "its uuid is also that of") {
				equal++
			}
		}
	}
	if equal != 3 {
		t.Errorf("%d warnings of equal uuids, want 3", equal)
	}
}

func TestDomains_ShowsNamesWithControlCharactersEscaped(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct{ file, name string }{
		{"clear.cfg", "a\x1b[2Jb"}, {"del.cfg", "a\x7f"}, {"tab.cfg", "a\tb"}, {"utf8.cfg", "größe"},
		{"one.cfg", "twin"}, {"two\x1b.cfg", "twin"},
	} {
		write(t, filepath.Join(dir, c.file), "name = '"+c.name+"'\n")
	}
	write(t, filepath.Join(dir, "torn\r.cfg"), "!")
	got := list(t, New([]string{dir}, nil))
	want := []string{"a%09b", "a%1B[2Jb", "a%7F", "größe", "torn%0D", "twin", "twin@two%1B.cfg"}
	if !slices.Equal(names(got), want) {
		t.Errorf("names %q, want %q", names(got), want)
	}
	for _, name := range want[:3] {
		d := got[name]
		if !errors.Is(d.Err, backend.ErrInvalid) || !strings.Contains(d.Err.Error(), "is shown as "+name) || strings.ContainsAny(d.Err.Error(), "\x1b\x7f\t") {
			t.Errorf("%s: Err is %q", name, d.Err)
		}
	}
	if err := got["größe"].Err; err != nil {
		t.Errorf("größe: %v", err)
	}
}

func TestDomains_ReadsAutoWholeAndEachFileOnce(t *testing.T) {
	root := t.TempDir()
	auto := filepath.Join(root, "auto")
	for _, dir := range []string{"auto/dir", "sub.cfg", "real"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(root, "one.cfg"), "name='one'\ndisk=['one.img,raw,xvda']\n")
	write(t, filepath.Join(root, "other.conf"), "name='other'\n")
	write(t, filepath.Join(root, ".hidden.cfg"), "name='hidden'\n")
	write(t, filepath.Join(auto, "10-two"), "name='two'\n")
	write(t, filepath.Join(auto, ".swp"), "name='swp'\n")
	write(t, filepath.Join(root, "real/three"), "name='three'\ndisk=['three.img,raw,xvda']\n")
	for link, to := range map[string]string{"auto/one": "../one.cfg", "auto/three": "../real/three", "auto/loop": "loop", "auto/gone": "../gone.cfg", "auto/a-dir": "../real"} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(root, "one.cfg"), filepath.Join(root, "same.cfg")); err != nil {
		t.Fatal(err)
	}
	got := list(t, New([]string{root, auto, auto + "/.", filepath.Join(root, "one.cfg")}, nil))
	if want := []string{"gone", "loop", "one", "three", "two"}; !slices.Equal(names(got), want) {
		t.Errorf("domains are %q, want %q", names(got), want)
	}
	if !errors.Is(got["gone"].Err, backend.ErrNotExist) || got["loop"].Err == nil {
		t.Errorf("links to nowhere: %v, %v", got["gone"].Err, got["loop"].Err)
	}
	// Relative to the folder of the file itself, not of the link.
	if d := got["three"]; d.Config != filepath.Join(root, "real/three") || len(d.Disks) != 1 || d.Disks[0].Source != filepath.Join(root, "real/three.img") {
		t.Errorf("three is %+v", d)
	}
}

func TestDomains_TellsOfMissingPaths(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	dir := t.TempDir()
	d := New([]string{filepath.Join(dir, "none"), filepath.Join(dir, "none.cfg")}, zap.New(core))
	for range 3 {
		got := list(t, d)
		if !slices.Equal(names(got), []string{"none"}) || !errors.Is(got["none"].Err, backend.ErrNotExist) {
			t.Errorf("domains are %+v, want the missing file as one that does not exist", got)
		}
	}
	if logs.Len() != 1 || !strings.Contains(fmt.Sprint(logs.All()[0].ContextMap()), dir+"/none") {
		t.Errorf("logged %v, want one warning of the missing folder", logs.All())
	}
	if err := os.Mkdir(filepath.Join(dir, "none"), 0o755); err != nil {
		t.Fatal(err)
	}
	list(t, d)
	if err := os.Remove(filepath.Join(dir, "none")); err != nil {
		t.Fatal(err)
	}
	list(t, d)
	if logs.Len() != 2 {
		t.Errorf("logged %v, want a second warning when the folder was there and went", logs.All())
	}
}

func TestDomains_TakesAMissingDefaultPathForAnEmptyOne(t *testing.T) {
	defer func(p []string) { DefaultPaths = p }(DefaultPaths)
	DefaultPaths = []string{filepath.Join(t.TempDir(), "xen.d"), filepath.Join(t.TempDir(), "auto")}
	core, logs := observer.New(zap.WarnLevel)
	if got := list(t, New(nil, zap.New(core))); len(got) > 0 || logs.Len() > 0 {
		t.Errorf("domains %q, log %v; want none", names(got), logs.All())
	}
}

func TestDomains_ShowsAFileThatItMayNotRead(t *testing.T) {
	testneed.Root(t)
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for p := dir; p != os.TempDir() && p != "/"; p = filepath.Dir(p) {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "secret.cfg"), "name='x'\n")
	write(t, filepath.Join(dir, "plain.cfg"), "name='plain'\n")
	if err := os.Chmod(filepath.Join(dir, "secret.cfg"), 0); err != nil {
		t.Fatal(err)
	}
	// Root reads everything but with another fsuid, which is this thread's alone.
	got := map[string]backend.Domain{}
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := syscall.Setfsuid(65534); err != nil {
			t.Error(err)
			return
		}
		domains, err := New([]string{dir}, nil).Domains(context.Background())
		if err != nil {
			t.Error(err)
		}
		for _, d := range domains {
			got[d.Name] = d
		}
	})
	wg.Wait()
	if !slices.Equal(names(got), []string{"plain", "secret"}) || !errors.Is(got["secret"].Err, backend.ErrAccess) || got["plain"].Err != nil {
		t.Errorf("domains are %+v, want plain, and secret with ErrAccess", got)
	}
}

func TestDomains_DoesNotWaitForAPipe(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe.cfg"), 0o644); err != nil {
		t.Fatal(err)
	}
	got := list(t, New([]string{dir}, nil))
	if !errors.Is(got["pipe"].Err, backend.ErrInvalid) {
		t.Errorf("domains are %+v, want pipe with ErrInvalid", got)
	}
	if _, err := readEntry(filepath.Join(dir, "pipe.cfg")); !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("a pipe that takes a file's place is read: %v", err)
	}
}

func TestDomains_SeesEachChangeAtOnce(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.cfg")
	d := New([]string{dir}, nil)
	for i := range 50 {
		name := fmt.Sprintf("n%02d", i) // of one length, within one tick of the filesystem's clock
		write(t, path, "name='"+name+"'\n")
		if got := names(list(t, d)); !slices.Equal(got, []string{name}) {
			t.Fatalf("domains are %q after %s was written", got, name)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if got := list(t, d); len(got) > 0 {
		t.Errorf("domains are %q after the file was removed", names(got))
	}
}

func TestDomains_ReadsAnUnchangedFileOnce(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.cfg")
	write(t, path, "name='a'\ndisk=['/a,raw,xvda']\n")
	core, logs := observer.New(zap.DebugLevel)
	d := New([]string{dir}, zap.New(core))
	first := list(t, d)
	if entry := d.cache[path]; entry.settled {
		t.Error("a file just written counts as settled: a change in the same tick would go unseen")
	}
	time.Sleep(settleTime + 100*time.Millisecond)
	for range 5 {
		if got := list(t, d); !reflect.DeepEqual(got, first) {
			t.Errorf("domains are %+v, were %+v", got, first)
		}
	}
	if logs.Len() != 2 {
		t.Errorf("read %d times, want once fresh and once settled", logs.Len())
	}
	// As mv of a file with preserved times does: only the inode tells.
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path+".new", "name='b'\ndisk=['/a,raw,xvda']\n")
	if err := os.Chtimes(path+".new", info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	if got := names(list(t, d)); !slices.Equal(got, []string{"b"}) {
		t.Errorf("domains are %q, want the file that was moved into place", got)
	}
}

func TestDomains_TellsADeadlineFromACancel(t *testing.T) {
	ctx, cancel := context.WithDeadline(context.Background(), time.Unix(0, 0))
	defer cancel()
	d := New([]string{"testdata/host"}, nil)
	if _, err := d.Domains(ctx); !errors.Is(err, backend.ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("past the deadline: %v", err)
	}
	ctx, cancel = context.WithCancel(context.Background())
	cancel()
	if _, err := d.Domains(ctx); errors.Is(err, backend.ErrTimeout) || !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestDomains_LeavesNoDescriptorOpen(t *testing.T) {
	count := func() int {
		names, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	list(t, New([]string{"testdata/host"}, nil))
	before := count()
	for range 10 {
		list(t, New([]string{"testdata/host", "testdata/host/auto", "testdata/host/none.cfg"}, nil))
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}
