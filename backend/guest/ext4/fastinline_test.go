package ext4

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

// inlineAreaImage is a filesystem with files and directories that are in their inodes.
func inlineAreaImage(t testing.TB, path string) {
	t.Helper()
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Truncate(path, 32*mib))
	command(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-O", "fast_commit,inline_data", "-J", "size=4,fast_commit_size=256", path)
	populate(t, path, func(dir string) {
		name := func(names ...string) string { return filepath.Join(append([]string{dir}, names...)...) }
		must(t, os.WriteFile(name("a"), content(1, 20_000), 0o600))
		must(t, os.WriteFile(name("small"), content(2, 30), 0o600))
		must(t, os.WriteFile(name("larger"), content(3, 100), 0o600))
		for _, d := range []string{"empty", "few", "more", "attributes", "full"} {
			must(t, os.Mkdir(name(d), 0o700))
		}
		must(t, unix.Setxattr(name("attributes"), "user.one", content(1, 20), 0))
		must(t, unix.Setxattr(name("attributes"), "user.two", content(2, 11), 0))
		must(t, unix.Setxattr(name("full"), "user.one", content(1, 60), 0))
		for i := range 2 {
			must(t, os.WriteFile(name("few", fmt.Sprint(i)), nil, 0o600))
		}
		for i := range 7 {
			must(t, os.Link(name("a"), name("more", fmt.Sprint(i))))
			must(t, os.Link(name("a"), name("attributes", fmt.Sprint(i))))
		}
	})
}

// linksIn adds so many names of a file to a directory.
func linksIn(a *fastArea, dir, ino uint32, n int) {
	for i := range n {
		a.name(fcLink, dir, ino, fmt.Sprintf("%s-%d", strings.Repeat("n", i%20), i))
	}
}

var inlineAreaCases = func() (cases []areaCase) {
	for _, dir := range []string{"empty", "few", "more", "attributes", "full"} {
		for _, n := range []int{1, 3, 6, 40, 150} {
			cases = append(cases, areaCase{name: fmt.Sprintf("%d names in the directory %q", n, dir), make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
				linksIn(a, ino(dir), ino("a"), n)
				a.tail()
			}})
		}
	}
	unlink := func(dir string, names ...string) areaCase {
		return areaCase{name: fmt.Sprintf("names %q of the directory %q are taken away, and one is made", names, dir), make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
			for _, name := range names {
				a.name(fcUnlink, ino(dir), ino("a"), name)
			}
			a.name(fcLink, ino(dir), ino("a"), "name").tail()
		}}
	}
	return append(cases,
		unlink("more", "0"), unlink("more", "1", "0"), unlink("more", "6"), unlink("more", "4", "5", "6"), unlink("more", "3", "4", "5"),
		unlink("more", "0", "1", "2", "3", "4", "5", "6"), unlink("attributes", "0", "5"), unlink("more", "none"),
		areaCase{name: "create a directory in the inode, and names in it", make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
			a.inode(fs, ino("empty"), 900, 2).name(fcCreate, rootIno, 900, "new").inode(fs, ino("small"), 901, 1).name(fcCreate, 900, 901, "below").inode(fs, ino("small"), 901, 1)
			linksIn(a, 900, ino("a"), 12)
			a.tail()
		}},
		areaCase{name: "create a directory whose inode has names already", make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
			a.inode(fs, ino("more"), 900, 2).name(fcCreate, rootIno, 900, "new").name(fcLink, 900, ino("a"), "0").name(fcLink, 900, ino("a"), "7").tail()
		}},
		areaCase{name: "create a file in the inode", make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
			a.inode(fs, ino("larger"), 900, 1).name(fcCreate, ino("few"), 900, "new").inode(fs, ino("larger"), 900, 1).tail()
		}},
		areaCase{name: "a file in the inode changes", make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
			a.inode(fs, ino("larger"), ino("small"), 1).inode(fs, ino("small"), ino("larger"), 1, func(raw []byte) {
				copy(raw[inodeBlockAt:], "changed")
				binary.LittleEndian.PutUint32(raw[inodeSizeAt:], 5)
			}).tail()
		}},
		areaCase{name: "a file with blocks becomes one in the inode", make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
			a.inode(fs, ino("larger"), ino("a"), 15).tail()
		}},
		areaCase{name: "unlink the last name of a file in the inode", make: func(a *fastArea, fs *FS, ino func(...string) uint32) {
			a.name(fcUnlink, rootIno, ino("larger"), "larger").tail()
		}},
	)
}()

func TestFastCommits_ChangeWhatIsInInodes(t *testing.T) {
	image := filepath.Join(reflinkDir(t), "image")
	inlineAreaImage(t, image)
	compareAreas(t, image, inlineAreaCases)
}

// A file that has just got blocks is still in its inode where the tags of its ranges are: what the kernel makes of
// them then is undefined, and what follows is replayed.
func TestFastCommits_PassOverRangesOfFilesInTheirInodes(t *testing.T) {
	testneed.Loop(t)
	testneed.Tools(t, "mke2fs", "mkfs.xfs", "e2fsck")
	image := filepath.Join(reflinkDir(t), "image")
	inlineAreaImage(t, image)
	before, _ := openImage(t, image)
	ino := func(names ...string) uint32 { return uint32(lookup(t, before, names...).Ino) }
	a := newFastArea(before.sb.blockBytes(), fastTID(t, before))
	a.addRange(ino("larger"), run{logical: 0, blocks: 1, phys: 27_000, state: runWritten}).delRange(ino("larger"), 0, 1).name(fcLink, rootIno, ino("a"), "one").tail()
	a.name(fcLink, ino("more"), ino("a"), "two").tail()
	putFastArea(t, image, a.area)
	fs, _ := openImage(t, image)
	if w := fs.Warnings(); len(w) != 0 || fs.fastCommits[fcTail] != 2 {
		t.Errorf("warnings: %q; tags %v", w, fs.fastCommits)
	}
	lookup(t, fs, "one")
	lookup(t, fs, "more", "two")
	if was, is := lookup(t, before, "larger"), lookup(t, fs, "larger"); was != is {
		t.Errorf("the file was %+v, and is %+v", was, is)
	}
	out := writeOut(t, fs, image, image+".out")
	recount(t, out)
	for _, f := range faults(t, out) {
		t.Errorf("e2fsck: %s", f)
	}
}

// A tag of a name in an encrypted directory no kernel makes: it is told, and nothing replayed.
func TestFastCommits_OfNamesInEncryptedDirectoriesAreTold(t *testing.T) {
	testneed.Tools(t, "mke2fs", "debugfs")
	image := mkfs(t, 32, false, "-t", "ext4", "-b", "1024", "-O", "fast_commit,encrypt", "-J", "size=4,fast_commit_size=256")
	debugfs(t, image, "mkdir d", "mkdir plain", "sif d flags 0x80800")
	before, _ := openImage(t, image)
	d, plain := uint32(lookup(t, before, "d").Ino), uint32(lookup(t, before, "plain").Ino)
	a := newFastArea(before.sb.blockBytes(), fastTID(t, before))
	a.name(fcLink, plain, plain, "one").name(fcLink, d, plain, "two").tail()
	putFastArea(t, image, a.area)
	fs, _ := openImage(t, image)
	if w := fs.Warnings(); len(w) != 1 || !strings.Contains(w[0], "encrypted directory") {
		t.Errorf("warnings: %q", w)
	}
	if _, err := fs.Lookup(uint64(plain), "one"); err == nil {
		t.Error("the name before is there")
	}
}

// This kernel has no case-folded directories: e2fsck is asked, which knows their hashes.
func TestFastCommits_ChangeCaseFoldedDirectories(t *testing.T) {
	testneed.Loop(t)
	testneed.Tools(t, "mke2fs", "mkfs.xfs", "e2fsck", "debugfs")
	image := filepath.Join(reflinkDir(t), "image")
	source := t.TempDir()
	must(t, os.Mkdir(filepath.Join(source, "small"), 0o755))
	must(t, os.Mkdir(filepath.Join(source, "large"), 0o755))
	must(t, os.WriteFile(filepath.Join(source, "a"), nil, 0o644))
	must(t, os.WriteFile(filepath.Join(source, "small", "Name"), nil, 0o644))
	name := func(i int) string { return fmt.Sprintf("%s Straße %d", strings.Repeat("Ä", i%40), i) }
	for i := range 150 {
		must(t, os.Link(filepath.Join(source, "a"), filepath.Join(source, "large", name(i))))
	}
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 32*mib))
	command(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-O", "casefold,fast_commit", "-J", "size=4,fast_commit_size=256", "-d", source, image)
	debugfs(t, image, "sif small flags 0x40080000", "sif large flags 0x40080000")
	command(t, "e2fsck", "-fyD", image)

	before, _ := openImage(t, image)
	ino := func(names ...string) uint32 { return uint32(lookup(t, before, names...).Ino) }
	a := newFastArea(before.sb.blockBytes(), fastTID(t, before))
	// Names that are there in another case; the kernel leaves the first of them.
	a.name(fcLink, ino("small"), ino("a"), "NAME")
	for i := range 150 {
		a.name(fcLink, ino("small"), ino("a"), name(i))
	}
	for i := 150; i < 300; i++ {
		a.name(fcLink, ino("large"), ino("a"), name(i))
	}
	want := map[string]bool{}
	for i := range 300 {
		if i%3 == 0 {
			a.name(fcUnlink, ino("large"), ino("a"), strings.ToUpper(strings.ReplaceAll(name(i), "ß", "ss")))
		} else {
			want[name(i)] = true
		}
	}
	a.tail()
	putFastArea(t, image, a.area)

	fs, _ := openImage(t, image)
	if w := fs.Warnings(); len(w) != 0 || fs.fastCommits[fcLink] != 301 || fs.fastCommits[fcUnlink] != 100 {
		t.Errorf("warnings: %q; tags %v", w, fs.fastCommits)
	}
	list := func(dir string) (names []string) {
		must(t, fs.ReadDir(lookup(t, fs, dir).Ino, 0, false, func(e *backend.DirEntry) bool { names = append(names, e.Name); return true }))
		return names
	}
	if names := list("small"); len(names) != 151 || !slices.Contains(names, "Name") {
		t.Errorf("%d names in the small directory", len(names))
	}
	names := list("large")
	for _, name := range names {
		if !want[name] {
			t.Errorf("the name %q", name)
		}
		if a := lookup(t, fs, "large", strings.ToLower(name)); a.Ino != uint64(ino("a")) {
			t.Errorf("%q: %+v", name, a)
		}
	}
	if len(names) != len(want) {
		t.Errorf("%d names, not %d", len(names), len(want))
	}
	var in inode
	must(t, fs.directory(lookup(t, fs, "small").Ino, &in))
	if !fs.indexed(&in) {
		t.Error("the small directory has no htree")
	}
	out := writeOut(t, fs, image, image+".out")
	recount(t, out)
	for _, f := range faults(t, out) {
		// The kernel's replay does not count the blocks that directories grow by.
		if !strings.Contains(f, ", i_blocks is ") {
			t.Errorf("e2fsck: %s", f)
		}
	}
}
