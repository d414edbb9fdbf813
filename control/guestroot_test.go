package control

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/fake"
)

// rootGuest is a guest of several disks, each with one filesystem, made by make: by vdev.
type rootGuest map[string]func(g *fake.Guest)

// withRoot is a Host whose domain web01 is off and has those disks. A filesystem's UUID is "uuid-" and its vdev.
func withRoot(t *testing.T, disks rootGuest, s setup) *bench {
	t.Helper()
	guests := fake.NewGuests()
	s.domains = func(h *fake.Host) {
		var vdevs []string
		contents := map[string][]byte{}
		for vdev, make := range disks {
			vdevs = append(vdevs, vdev)
			if make == nil {
				continue // no filesystem
			}
			g := fake.NewGuest("web01-" + vdev)
			g.UUID = "uuid-" + vdev
			make(g)
			guests.Add(g)
			contents[vdev] = append(g.Header(), byteZeros(4096)...)
		}
		slices.Sort(vdevs)
		h.AddDomain("web01", uuid1, contents, vdevs...)
	}
	s.options = func(o *Options) {
		o.Prober, o.Layouts, o.Filesystems, o.Assemblers = guests, []backend.Layout{fake.Table{}}, []backend.Filesystem{guests}, []backend.Assembler{&fake.Assembler{}}
	}
	return newBench(t, s)
}

func byteZeros(n int) []byte { return make([]byte, n) }

func fstab(g *fake.Guest, lines ...string) {
	g.File("etc/fstab", []byte(strings.Join(lines, "\n")+"\n"))
}

func (b *bench) root(ref VolumeRef) *Root {
	b.t.Helper()
	r, err := b.Root(b.t.Context(), ref)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

// shown lists the mounts of a root, as "mount point=volume", sorted.
func (r *Root) shown() string {
	if r.Top == nil {
		return "none"
	}
	var out []string
	var walk func(m *Mount)
	walk = func(m *Mount) {
		id := strings.ReplaceAll(m.ID, "\x00", " ")
		line := id + "=" + m.Ref.member()
		if m.Err != nil {
			line = id + " fails"
		}
		out = append(out, line)
		for _, o := range m.over {
			walk(o)
		}
	}
	walk(r.Top)
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func TestRoot_IsTheFilesystemWhoseFstabNamesIt(t *testing.T) {
	named := func(spec string) func(g *fake.Guest) {
		return func(g *fake.Guest) { fstab(g, "# root", spec+" / memfs defaults 0 1") }
	}
	osRelease := func(g *fake.Guest) { g.File("etc/os-release", nil) }
	busybox := func(g *fake.Guest) { g.Dir("bin"); g.Dir("etc") }
	data := func(g *fake.Guest) { g.File("data", nil) }
	for name, c := range map[string]struct {
		disks rootGuest
		want  string
		warns string
	}{
		"by UUID":                          {rootGuest{"xvda": named("UUID=uuid-xvdb"), "xvdb": named("UUID=uuid-xvdb")}, "/=xvdb", ""},
		"by device":                        {rootGuest{"xvda": data, "xvdb": named("/dev/sdb")}, "/=xvdb", ""},
		"the first of two":                 {rootGuest{"xvda": data, "xvdb": named("/dev/xvdb"), "xvdc": named("/dev/xvdc")}, "/=xvdb", ""},
		"of disks, xvdz goes before xvdaa": {rootGuest{"xvdaa": named("/dev/xvdaa"), "xvdz": named("/dev/xvdz")}, "/=xvdz", ""},
		"the only fstab":                   {rootGuest{"xvda": data, "xvdb": named("/dev/root"), "xvdc": osRelease}, "/=xvdb", ""},
		"an fstab and a system":            {rootGuest{"xvda": named("/dev/root"), "xvdb": func(g *fake.Guest) { named("/dev/root")(g); osRelease(g) }}, "/=xvdb", ""},
		"two fstabs that name neither":     {rootGuest{"xvda": named("/dev/root"), "xvdb": named("/dev/root")}, "none", "none of these is it, or more than one may be: xvda (memfs, with an /etc/fstab that does not name it), xvdb (memfs"},
		"without fstab, os-release":        {rootGuest{"xvda": data, "xvdb": osRelease}, "/=xvdb", ""},
		"without fstab, bin and etc":       {rootGuest{"xvda": data, "xvdb": busybox}, "/=xvdb", ""},
		"two systems without fstab":        {rootGuest{"xvda": osRelease, "xvdb": busybox}, "none", "more than one may be: xvda (memfs), xvdb (memfs)"},
		"no filesystem":                    {rootGuest{"xvda": nil}, "none", "there is no filesystem that is read here"},
		"fstab behind links": {rootGuest{"xvda": func(g *fake.Guest) {
			g.Symlink("etc", "/../system/./etc")
			g.Symlink("system/etc/fstab", "../../conf/fstab")
			g.File("conf/fstab", []byte("/dev/xvda / memfs"))
		}}, "/=xvda", ""},
		"links that lead to themselves":    {rootGuest{"xvda": func(g *fake.Guest) { g.Symlink("etc", "etc") }}, "none", "xvda (memfs)"},
		"a link out of the guest":          {rootGuest{"xvda": func(g *fake.Guest) { g.Symlink("etc", "../../../../../etc"); g.Dir("bin") }}, "none", "xvda (memfs)"},
		"fstab that is no file":            {rootGuest{"xvda": func(g *fake.Guest) { g.Dir("etc/fstab"); g.Dir("bin") }}, "/=xvda", ""},
		"an fstab that is over its bounds": {rootGuest{"xvda": func(g *fake.Guest) { fstab(g, "/dev/xvda / memfs", strings.Repeat("# comment\n", 8000)) }}, "/=xvda", "is longer than"},
		"a link through very many names":   {rootGuest{"xvda": func(g *fake.Guest) { g.Symlink("etc", strings.Repeat("./a/..", 600)); g.Dir("a") }}, "none", "xvda (memfs)"},
	} {
		t.Run(name, func(t *testing.T) {
			b := withRoot(t, c.disks, setup{})
			if got := b.root(VolumeRef{Domain: "web01"}).shown(); got != c.want {
				t.Errorf("root is %s, want %s", got, c.want)
			}
			last := string(b.LastErrors("web01"))
			if c.warns == "" && last != "" || !strings.Contains(last, c.warns) {
				t.Errorf("last_error is %q, want %q in it", last, c.warns)
			}
		})
	}
}

func TestRoot_MountsWhatTheGuestMounts(t *testing.T) {
	const top = "/dev/xvda / memfs"
	dirs := func(names ...string) func(g *fake.Guest) {
		return func(g *fake.Guest) {
			for _, n := range names {
				g.Dir(n)
			}
		}
	}
	for name, c := range map[string]struct {
		lines []string
		make  func(g *fake.Guest) // of the root filesystem
		b     func(g *fake.Guest) // of xvdb
		want  string
		warns []string
	}{
		"a child before its parent": {lines: []string{top, "/dev/xvdc /var/log memfs", "/dev/xvdb /var memfs"}, make: dirs("var"), b: dirs("log"), want: "/=xvda, /var/log=xvdc, /var=xvdb"},
		"through links": {lines: []string{top, "UUID=uuid-xvdb /home/../srv// memfs"}, make: func(g *fake.Guest) {
			g.Dir("home")
			g.Dir("data/here")
			g.Symlink("srv", "data/link")
			g.Symlink("data/link", "/data/here")
		}, want: "/=xvda, /home/../srv=xvdb"},
		"through a link": {lines: []string{top, "UUID=uuid-xvdb /srv/ memfs"}, make: func(g *fake.Guest) {
			g.Dir("data/here")
			g.Symlink("srv", "data/link")
			g.Symlink("data/link", "/data/here")
		}, want: "/=xvda, /srv=xvdb"},
		"what is none of its disks":  {lines: []string{top, "proc /proc proc", "tmpfs /tmp tmpfs", "none /sys sysfs", "h:/x /nfs nfs", "//h/x /cifs cifs", "/dev/xvdz none swap sw", "/swap swap swap", "sshfs#h: /ssh fuse"}, want: "/=xvda"},
		"noauto":                     {lines: []string{top, "/dev/xvdb /home memfs noauto", "/dev/xvdc /srv memfs noauto,x-systemd.automount"}, make: dirs("home", "srv"), want: "/=xvda, /srv=xvdc"},
		"missing":                    {lines: []string{top, "UUID=gone /home memfs", "LABEL=away /srv memfs nofail"}, make: dirs("home", "srv"), want: "/=xvda", warns: []string{"UUID=gone, which its /etc/fstab mounts at /home, is not shown there: there is no such volume"}},
		"no such directory":          {lines: []string{top, "/dev/xvdb /home memfs"}, want: "/=xvda", warns: []string{"at /home, is not shown there: there is no such directory"}},
		"no directory":               {lines: []string{top, "/dev/xvdb /etc/fstab memfs"}, want: "/=xvda", warns: []string{"that is no directory"}},
		"no filesystem":              {lines: []string{top, "/dev/xvdd /home auto"}, make: dirs("home"), want: "/=xvda", warns: []string{`xvdd holds "", which is no filesystem that is read here`}},
		"twice at one place":         {lines: []string{top, "/dev/xvdb /home memfs", "/dev/xvdc /home/ memfs"}, make: dirs("home"), want: "/=xvda, /home=xvdb", warns: []string{"has /home twice"}},
		"one at two places":          {lines: []string{top, "/dev/xvdb /a memfs", "/dev/xvdb /b memfs", "/dev/xvdc /a/in memfs"}, make: dirs("a", "b"), b: dirs("in"), want: "/=xvda, /a/in=xvdc, /a=xvdb, /b=xvdb"},
		"on the root itself":         {lines: []string{top, "/dev/xvdb /here memfs", "/dev/xvdc / memfs", "/dev/xvdc /../. memfs"}, make: func(g *fake.Guest) { g.Symlink("here", "/") }, want: "/=xvda", warns: []string{"/here, is not shown there: that is the root directory itself", "/.., is not shown"}},
		"upon another by a link":     {lines: []string{top, "/dev/xvdb /a memfs", "/dev/xvdc /b memfs"}, make: func(g *fake.Guest) { g.Dir("a"); g.Symlink("b", "a") }, want: "/=xvda, /a=xvdb, /b=xvdc"},
		"bind":                       {lines: []string{top, "/a/in /c none bind", "/dev/xvdb /a memfs"}, make: dirs("a", "c"), b: dirs("in"), want: "/=xvda, /a=xvdb, /c=xvdb"},
		"bind leaves out what is in": {lines: []string{top, "/a /c none bind", "/dev/xvdb /a memfs", "/dev/xvdc /a/in memfs"}, make: dirs("a", "c"), b: dirs("in"), want: "/=xvda, /a/in=xvdc, /a=xvdb, /c=xvdb"},
		"rbind shows it again":       {lines: []string{top, "/a /c none rbind", "/dev/xvdb /a memfs", "/dev/xvdc /a/in memfs"}, make: dirs("a", "c"), b: dirs("in"), want: "/=xvda, /a/in=xvdc, /a=xvdb, /c /a/in=xvdc, /c=xvdb"},
		"rbind of the root in it":    {lines: []string{top, "/ /c none rbind", "/dev/xvdb /a memfs"}, make: dirs("a", "c"), want: "/=xvda, /a=xvdb, /c /a=xvdb, /c=xvda"},
		"bind of a file, of nothing": {lines: []string{top, "/etc/fstab /c none bind", "/none /d none bind", "rel /e none bind"}, make: dirs("c", "d", "e"), want: "/=xvda", warns: []string{"only directories are mounted", "there is no such directory", "it is no path"}},
		"an image, and a part":       {lines: []string{top, "/disk.img /c memfs loop", "/dev/xvdb /d memfs X-mount.subdir=x"}, make: dirs("c", "d"), want: "/=xvda", warns: []string{"only devices and tags are found here", "X-mount.subdir=x"}},
	} {
		t.Run(name, func(t *testing.T) {
			root := func(g *fake.Guest) {
				if c.make != nil {
					c.make(g)
				}
				fstab(g, c.lines...)
			}
			other := c.b
			if other == nil {
				other = dirs("log")
			}
			b := withRoot(t, rootGuest{"xvda": root, "xvdb": other, "xvdc": dirs("x"), "xvdd": nil}, setup{})
			if got := b.root(VolumeRef{Domain: "web01"}).shown(); got != c.want {
				t.Errorf("mounts are %s, want %s", got, c.want)
			}
			last := string(b.LastErrors("web01"))
			for _, w := range c.warns {
				if !strings.Contains(last, w) {
					t.Errorf("last_error does not say %q:\n%s", w, last)
				}
			}
			if n := strings.Count(last, "\n"); n > len(c.warns) {
				t.Errorf("last_error has %d lines, want %d:\n%s", n, len(c.warns), last)
			}
		})
	}
}

func TestRoot_FindsVolumesOfTheGuestsGroups(t *testing.T) {
	b, guests := withLVM(t, setup{})
	root := fake.NewGuest("lvm-root")
	root.Dir("home")
	fstab(root, "/dev/mapper/vg0-root / memfs", "/dev/vg0/home /home memfs")
	guests.Add(root)
	if got, want := b.root(VolumeRef{Domain: "web01"}).shown(), "/=lvm/vg0/root, /home=lvm/vg0/home"; got != want {
		t.Errorf("mounts are %s, want %s", got, want)
	}
}

func TestRoot_OfADiskThatCannotBeReadIsAnErrorAndHeals(t *testing.T) {
	disks := rootGuest{
		"xvda": func(g *fake.Guest) {
			g.Dir("home")
			fstab(g, "UUID=uuid-xvda / memfs", "UUID=uuid-xvdb /home memfs nofail")
		},
		"xvdb": func(g *fake.Guest) { g.File("alice", nil) },
	}
	b := withRoot(t, disks, setup{limits: func(l *limits) { l.idle = 100 * time.Millisecond }})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	ref := VolumeRef{SetID: b.set("web01", "s").ID}
	whole := b.root(ref)
	clear := b.fake.Store.Plant(fake.Fault{Op: "Open", ID: b.set("web01", "s").Disk("xvdb").Volume.ID, Err: fmt.Errorf("a cable is loose: %w", backend.ErrIO)})
	b.volumes.killWhere(func(*disk) bool { return true })
	r := b.root(ref)
	if got, want := r.shown(), "/ fails"; got == want || r.shown() != "/=xvda, /home fails" {
		t.Errorf("mounts are %s", got)
	}
	if !r.Passing || r.ID == whole.ID {
		t.Errorf("passing: %t, and its ID is that of the whole: %t", r.Passing, r.ID == whole.ID)
	}
	clear()
	eventually(t, "it is whole again", func() bool { return b.root(ref).ID == whole.ID })

	// The same of the disk with the root itself: nothing else is taken for it.
	clear = b.fake.Store.Plant(fake.Fault{Op: "Open", ID: b.set("web01", "s").Disk("xvda").Volume.ID, Err: fmt.Errorf("a cable is loose: %w", backend.ErrIO)})
	defer clear()
	b.volumes.killWhere(func(*disk) bool { return true })
	_, err := b.Root(t.Context(), ref)
	b.mustFail(err, backend.ErrIO, "a cable is loose")
}

func TestRoot_OfAnInvalidSnapshotIsAnError(t *testing.T) {
	b := withRoot(t, rootGuest{"xvda": func(g *fake.Guest) { fstab(g, "/dev/xvda / memfs") }}, setup{})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	ref := VolumeRef{SetID: b.set("web01", "s").ID}
	b.root(ref)
	b.fake.Store.Invalidate(ref.SetID, "xvda")
	b.inv()
	_, err := b.Root(t.Context(), ref)
	b.mustFail(err, backend.ErrIO, "is invalid")
}

func TestRoot_KeepsNothingOpen(t *testing.T) {
	b := withRoot(t, rootGuest{"xvda": func(g *fake.Guest) { fstab(g, "/dev/xvda / memfs") }}, setup{})
	ref := VolumeRef{Domain: "web01"}
	first := b.root(ref)
	if _, acquired := b.volumes.counts(); acquired != 0 {
		t.Errorf("%d volumes are acquired", acquired)
	}
	if again := b.root(ref); again != first {
		t.Error("it was found a second time")
	}
	b.fake.Store.Write("/images/web01-xvda", 8192-4096, []byte("x"))
	b.inv()
	if again := b.root(ref); again.ID == first.ID {
		t.Error("a root of other bytes has the same ID")
	}
	b.fake.Hypervisor.Start("web01")
	b.inv()
	if _, err := b.Root(t.Context(), ref); !errors.Is(err, backend.ErrStale) {
		t.Errorf("of a domain that runs: %v", err)
	}
}

func TestRoot_MountsHaveIDsOfTheirOwnWhateverTheirPlacesAreCalled(t *testing.T) {
	b := withRoot(t, rootGuest{"xvda": func(g *fake.Guest) {
		for _, n := range []string{"a", "c", "c /a", "other"} {
			g.Dir(n)
		}
		fstab(g, "/dev/xvda / memfs", "/ /c none rbind", "/dev/xvdb /a memfs", `/other /c\040/a none bind`)
	}, "xvdb": func(g *fake.Guest) { g.Dir("log") }}, setup{})
	seen := map[string]bool{}
	var walk func(m *Mount)
	walk = func(m *Mount) {
		if seen[m.ID] {
			t.Errorf("two mounts are called %q", m.ID)
		}
		seen[m.ID] = true
		for _, o := range m.over {
			walk(o)
		}
	}
	walk(b.root(VolumeRef{Domain: "web01"}).Top)
	if len(seen) != 5 {
		t.Errorf("%d mounts: %v", len(seen), seen)
	}
}
