package image

import (
	"os"
	"path/filepath"
	"strings"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links a path may lead through, as path_resolution(7).
const maxLinks = 40

// trustedPath resolves the symbolic links of an absolute path, all of which must belong to root or to
// our own user: a link made by whoever else may write to an image's folder would lead us to read, to grow and to
// copy files that are none of theirs.
func trustedPath(path string) (string, error) {
	rest := strings.Split(path, "/")
	at, links := "/", 0
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = filepath.Dir(at)
			continue
		}
		next := filepath.Join(at, name)
		var st unix.Stat_t
		if err := ignoringEINTR(func() error { return unix.Lstat(next, &st) }); err != nil {
			return "", failed("find", path, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			at = next
			continue
		}
		if st.Uid != 0 && int(st.Uid) != os.Geteuid() {
			return "", backend.Because(backend.ErrAccess, "%s: the symbolic link %s belongs to user %d, whom domfs does not follow: "+
				"name its target in the domain's configuration, or make the link root's", path, next, st.Uid)
		}
		if links++; links > maxLinks {
			return "", backend.Because(backend.ErrInvalid, "%s leads through more than %d symbolic links", path, maxLinks)
		}
		target, err := os.Readlink(next)
		if err != nil {
			return "", failed("find", path, err)
		}
		if strings.HasPrefix(target, "/") {
			at = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return at, nil
}

// cameFrom checks that an open file is the one that a resolved path named, and no link was
// put in the way since.
func cameFrom(f *os.File, path, resolved string) error {
	real, err := realPath(f, path)
	if err != nil {
		return err
	}
	if real != resolved {
		return backend.Because(backend.ErrStale, "%s: it was moved or replaced while it was opened", path)
	}
	return nil
}
