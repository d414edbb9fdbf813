package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strings"
	"time"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

// maxChain is how many files an image may consist of: itself, and those behind it.
const maxChain = 64

// chainFile is one file of an image, open for reading.
type chainFile struct {
	f      *os.File
	st     *unix.Stat_t
	path   string
	folder string               // where names in it that are relative begin
	format backend.Format       // nil: raw
	header backend.FormatHeader // of a format
}

func (c *chainFile) device() *device { return newDevice(c.f, c.path, c.st.Size) }

// chain is an image: its own file first, each one's backing file after it.
type chain []chainFile

// close closes all files.
func (c chain) close() {
	for i := range c {
		c[i].f.Close()
	}
}

// closeBacking closes all but the image's own file.
func (c chain) closeBacking() { c[1:].close() }

// sizeBytes is what the guest sees.
func (c chain) sizeBytes() int64 {
	if c[0].format == nil {
		return c[0].st.Size
	}
	return c[0].header.SizeBytes
}

// generation mixes the versions of all files.
func (c chain) generation() uint64 {
	if len(c) == 1 {
		return versionOf(c[0].st).generation()
	}
	h := fnv.New64a()
	var b [8]byte
	for i := range c {
		binary.LittleEndian.PutUint64(b[:], versionOf(c[i].st).generation())
		h.Write(b[:])
	}
	return h.Sum64()
}

// modTime is when one of the files changed last.
func (c chain) modTime() time.Time {
	var last time.Time
	for i := range c {
		if at := time.Unix(c[i].st.Mtim.Unix()); at.After(last) {
			last = at
		}
	}
	return last
}

// openChain opens the files behind top. On error it has closed all but top's own. A
// link is followed only as openBeneath does, and the format of each file is what the one
// before it records.
func (s *Store) openChain(top chainFile) (c chain, err error) {
	c = chain{top}
	defer func() {
		if err != nil {
			c.closeBacking()
			c = nil
		}
	}()
	seen := map[fileID]bool{idOf(top.st): true}
	var folders []namedFolder
	for {
		last := &c[len(c)-1]
		if last.format == nil {
			return c, nil
		}
		if last.header, err = last.format.Header(last.device()); err != nil {
			how := "by its disk's configuration"
			if len(c) > 1 {
				how = "by what " + c[len(c)-2].path + " records"
			}
			return c, fmt.Errorf("%s, a %s image %s: %w", last.path, last.format.Name(), how, err)
		}
		if last.header.Backing == "" {
			return c, nil
		}
		if len(c) == maxChain {
			return c, backend.Because(backend.ErrUnsupported, "%s has more than %d backing files behind each other: have it made anew with fewer (merging them with qemu-img reads "+
				"and writes files of the host that the images name: only do that if you trust whoever made them)", top.path, maxChain-1)
		}
		if folders == nil {
			folders = s.namedFolders()
		}
		next, err := s.openBacking(last, folders)
		if err != nil {
			return c, err
		}
		c = append(c, next)
		if seen[idOf(next.st)] {
			return c, backend.Because(backend.ErrCorrupt, "%s has the backing file %s, which has itself behind it again: restore one of them from a backup, or record the backing file that it had with qemu-img rebase -u", c[len(c)-2].path, next.path)
		}
		seen[idOf(next.st)] = true
	}
}

// openBacking opens the file behind over.
func (s *Store) openBacking(over *chainFile, folders []namedFolder) (next chainFile, err error) {
	name := over.header.Backing
	path, err := backingPath(name, over.folder)
	if err != nil {
		return next, fmt.Errorf("%s has the backing file %q: %w: %s", over.path, clip(name), err, dropCommand(over))
	}
	if next.format, err = s.backingFormat(over); err != nil {
		return next, err
	}
	l, err := openBeneath(folders, path)
	if where, outside := asOutside(err); outside {
		return next, outsideError(over.path, name, where, folders)
	}
	if errors.Is(err, backend.ErrNotExist) {
		return next, fmt.Errorf("%s has the backing file %q: %w: restore it, or record where it is now with qemu-img rebase -u -f %s -F FORMAT -b FILE %s",
			over.path, clip(name), err, over.format.Name(), shellWord(over.path, "IMAGE"))
	}
	if err != nil {
		return next, fmt.Errorf("%s has the backing file %q: %w", over.path, clip(name), err)
	}
	defer l.at.Close()
	if next.f, err = l.open(); err != nil {
		return next, fmt.Errorf("%s has the backing file %q: %w", over.path, clip(name), err)
	}
	next.st, next.path, next.folder = l.st, l.path, l.folder
	return next, nil
}

// backingPath makes an absolute path of a backing file's name, as QEMU understands it: relative
// to folder, which has no symbolic links; a name with a colon before its first slash begins with a
// protocol (docs/system/qemu-block-drivers, qemu(1)).
func backingPath(name, folder string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 || len(name) >= unix.PathMax {
		return "", backend.Because(backend.ErrInvalid, "that cannot be a path")
	}
	// Without a slash after it QEMU would take it relative to its own working directory.
	if rest, ok := strings.CutPrefix(name, "file:"); ok && strings.HasPrefix(rest, "/") {
		name = rest
	}
	if i := strings.IndexAny(name, ":/"); i >= 0 && name[i] == ':' {
		return "", backend.Because(backend.ErrUnsupported, "%q, which whoever made the image has chosen, is a protocol and no path, and only files are followed", clip(name[:i+1]))
	}
	if strings.HasPrefix(name, "/") {
		return name, nil
	}
	return "/" + strings.Join(ascend(folder, components(name)), "/"), nil
}

// backingFormat is the format that over records of its backing file. One that is not
// recorded is never found out by looking: a guest could have written a header.
func (s *Store) backingFormat(over *chainFile) (backend.Format, error) {
	if over.header.BackingFormat == "" {
		return nil, backend.Because(backend.ErrUnsupported, "%s does not record the format of its backing file %q, and domfs does not guess it: "+
			"if that is the file that it should have, record it with %s", over.path, clip(over.header.Backing), rebaseCommand(over))
	}
	f, err := backend.FindFormat(s.formats, over.header.BackingFormat)
	if err != nil {
		return nil, backend.Because(backend.ErrUnsupported, "%s records the format %q of its backing file %q, and only %s are read",
			over.path, clip(over.header.BackingFormat), clip(over.header.Backing), backend.FormatNames(s.formats))
	}
	return f, nil
}

// rebaseCommand records a backing file's format.
func rebaseCommand(over *chainFile) string {
	return fmt.Sprintf("qemu-img rebase -u -f %s -F FORMAT -b %s %s, FORMAT being raw or what else it is",
		over.format.Name(), shellWord(over.header.Backing, "BACKING"), shellWord(over.path, "IMAGE"))
}

// shellWord is a name for a command that an admin may run: one that a shell could read otherwise than it is
// written is replaced.
func shellWord(name, instead string) string {
	for i := range len(name) {
		c := name[i]
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.IndexByte("/._+,=@-", c) >= 0) {
			return instead
		}
	}
	if name == "" || name[0] == '-' || len(name) > 200 {
		return instead
	}
	return name
}

// dropCommand makes an image stand alone. Without -u, or with qemu-img convert, QEMU would read the file
// that the header names, into a disk that whoever chose that name can read (CVE-2010-3851).
func dropCommand(over *chainFile) string {
	return fmt.Sprintf("qemu-img rebase -u -f %s -b \"\" %s drops it, and then only what is in the image itself remains of the disk",
		over.format.Name(), shellWord(over.path, "IMAGE"))
}

// outsideError says what to do about a backing file outside of the named folders. Whoever made the image has chosen
// that name, and is answered with the file's bytes if its folder is named.
func outsideError(over, name, where string, folders []namedFolder) error {
	clean := filepath.Clean(where)
	if _, _, inside := enter(folders, components(clean)); inside {
		return backend.Because(backend.ErrAccess, "%s has the backing file %q, which leads through folders that --image-dir does not name: name it without \"..\"", over, clip(name))
	}
	leads := ""
	if where != name {
		leads = fmt.Sprintf(" (%s)", clip(where))
	}
	return backend.Because(backend.ErrAccess, "%s has the backing file %q%s: the image names a file of the host, which whoever made it has chosen. "+
		"Backing files are followed only in folders of templates that the admin names: never name a folder because an image asks for it; if this one is yours, mount with --image-dir=%s",
		over, clip(name), leads, shellWord(filepath.Dir(clean), "FOLDER"))
}

// compose makes one device of a chain. It owns the files, on errors too.
func (c chain) compose() (backend.Device, error) {
	var whole backend.Device
	for i := len(c) - 1; i >= 0; i-- {
		file := c[i].device()
		if c[i].format == nil {
			whole = file
			continue
		}
		opened, err := c[i].format.Open(file, whole)
		if err != nil {
			if whole != nil {
				whole.Close()
			}
			c[:i+1].close()
			return nil, fmt.Errorf("open %s as %s: %w", c[i].path, c[i].format.Name(), err)
		}
		whole = opened
	}
	return whole, nil
}
