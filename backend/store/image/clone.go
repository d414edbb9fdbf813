package image

import (
	"errors"
	"os"
	"path/filepath"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

// A copy leaves 1 % of its filesystem free, but not more than maxReserveBytes: sparse
// images of running domains beside it must be able to grow for a while.
const (
	reserveFraction = 100
	maxReserveBytes = 1 << 30
)

// fsNoCOW is FS_NOCOW_FL (ioctl_iflags(2)): Btrfs clones between files only if both
// have it or neither.
const fsNoCOW = 0x00800000

// maxReflinks bounds how many filesystems' capabilities are remembered.
const maxReflinks = 1024

// filesystem is the identity of a mounted filesystem.
type filesystem struct {
	dev  uint64
	kind int64
	id   [2]int32
}

// canReflink tells whether a file of the folder's filesystem can be cloned into the folder.
// It tries, with a file without a name.
func (s *Store) canReflink(folder *dir, image *unix.Stat_t) (bool, error) {
	st, err := statFile(folder.f, folder.path)
	if err != nil {
		return false, err
	}
	if st.Dev != image.Dev {
		return false, nil // the image is a mount point itself
	}
	var fs unix.Statfs_t
	if err := control(folder.f, func(fd int) error { return unix.Fstatfs(fd, &fs) }); err != nil {
		return false, failed("look at the filesystem of", folder.path, err)
	}
	key := filesystem{uint64(st.Dev), int64(fs.Type), fs.Fsid.Val}
	s.mu.Lock()
	can, known := s.reflinks[key]
	s.mu.Unlock()
	if known {
		return can, nil
	}
	can, err = tryReflink(folder)
	if err != nil {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.reflinks) >= maxReflinks {
		clear(s.reflinks)
	}
	s.reflinks[key] = can
	return can, nil
}

func tryReflink(folder *dir) (bool, error) {
	from, err := unnamedFile(folder)
	if err != nil {
		return false, err
	}
	defer from.Close()
	to, err := unnamedFile(folder)
	if err != nil {
		return false, err
	}
	defer to.Close()
	if _, err := from.Write(make([]byte, 4096)); err != nil {
		return false, failed("write a file in", folder.path, err)
	}
	err = cloneFile(to, from)
	if err == nil || cannotClone(err) {
		return err == nil, nil
	}
	return false, failed("clone a file in", folder.path, err)
}

// unnamedFile opens a new file that has no name and goes when it is closed.
func unnamedFile(folder *dir) (*os.File, error) {
	f, err := folder.open(".", unix.O_RDWR|unix.O_TMPFILE, 0o600)
	if err == nil {
		return f, nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return nil, failed("write in", folder.path, err)
	}
	return unlinkedFile(folder) // NFS has no O_TMPFILE
}

// unlinkedFile opens a new file as unnamedFile does; it has a name for an instant.
func unlinkedFile(folder *dir) (*os.File, error) {
	hidden, err := folder.makeSub(hiddenName)
	if err != nil {
		return nil, err
	}
	defer hidden.Close()
	name := tempName("probe")
	if err := hidden.unlink(name); err != nil {
		return nil, err
	}
	f, err := hidden.open(name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return nil, failed("write in", hidden.path, err)
	}
	err = hidden.unlink(name)
	if err == nil {
		err = folder.rmdirIfEmpty(hiddenName)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// cloneFile makes to share all blocks of from, at one instant.
func cloneFile(to, from *os.File) error {
	return control(from, func(fromFD int) error {
		return control(to, func(toFD int) error {
			// Where there are no such flags, there is nothing to carry over.
			if flags, err := unix.IoctlGetInt(fromFD, unix.FS_IOC_GETFLAGS); err == nil && flags&fsNoCOW != 0 {
				if own, err := unix.IoctlGetInt(toFD, unix.FS_IOC_GETFLAGS); err == nil {
					_ = unix.IoctlSetPointerInt(toFD, unix.FS_IOC_SETFLAGS, own|fsNoCOW)
				}
			}
			return unix.IoctlFileClone(toFD, fromFD)
		})
	})
}

// cannotClone tells whether a failure of FICLONE means that it will never work here.
func cannotClone(err error) bool {
	for _, errno := range []unix.Errno{unix.EOPNOTSUPP, unix.ENOTTY, unix.EXDEV, unix.EINVAL, unix.ENOSYS} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// checkSpace refuses copies that their filesystems have no room for. need has the bytes by folder.
func checkSpace(need map[string]int64) error {
	sums := map[filesystem]int64{}
	for folder, bytes := range need {
		if bytes == 0 {
			continue
		}
		var st unix.Stat_t
		if err := unix.Stat(folder, &st); err != nil {
			return failed("find", folder, err)
		}
		key := filesystem{dev: uint64(st.Dev)}
		sums[key] += bytes
		size, free, err := space(folder)
		if err != nil {
			return failed("look at the filesystem of", folder, err)
		}
		if usable := free - reserve(size); sums[key] > usable {
			return noSpace(folder, sums[key], free, reserve(size))
		}
	}
	return nil
}

func reserve(size int64) int64 { return min(size/reserveFraction, maxReserveBytes) }

func noSpace(folder string, need, free, reserved int64) error {
	return backend.Because(backend.ErrNoSpace, "copying takes %d bytes in %s, where %d are free, of which %d must stay so: free space or move the image", need, folder, free, reserved)
}

// reserveSpace gives to the size and the space that a copy of from needs. Where the
// filesystem cannot reserve, it only looks whether there is room.
func reserveSpace(to, from *os.File, path string, size int64) error {
	folder := filepath.Dir(path)
	var need int64
	err := dataRanges(from, path, size, func(_, length int64) error { need += length; return nil })
	if err != nil {
		return err
	}
	if err := checkSpace(map[string]int64{folder: need}); err != nil {
		return err
	}
	if err := control(to, func(fd int) error { return unix.Ftruncate(fd, size) }); err != nil {
		return failed("make a file as large as", path, err)
	}
	err = dataRanges(from, path, size, func(off, length int64) error {
		return control(to, func(fd int) error { return unix.Fallocate(fd, 0, off, length) })
	})
	switch {
	case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS):
		return nil
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		size, free, spaceErr := space(folder)
		if spaceErr != nil {
			return failed("reserve space in", folder, err)
		}
		return noSpace(folder, need, free, reserve(size))
	case err != nil:
		return failed("reserve space in", folder, err)
	}
	return nil
}

// filesystemNames are the filesystems that images are usually kept on, by magic
// number (statfs(2)).
var filesystemNames = map[int64]string{
	unix.EXT4_SUPER_MAGIC:      "ext4",
	unix.XFS_SUPER_MAGIC:       "this XFS, made without reflink,",
	unix.BTRFS_SUPER_MAGIC:     "Btrfs with these file flags",
	unix.TMPFS_MAGIC:           "tmpfs",
	unix.NFS_SUPER_MAGIC:       "NFS",
	unix.OVERLAYFS_SUPER_MAGIC: "overlayfs",
	unix.FUSE_SUPER_MAGIC:      "FUSE",
	unix.F2FS_SUPER_MAGIC:      "F2FS",
	0x2fc12fc1:                 "ZFS",
}

func filesystemName(f *os.File) string {
	var st unix.Statfs_t
	err := control(f, func(fd int) error { return unix.Fstatfs(fd, &st) })
	if name := filesystemNames[int64(st.Type)]; err == nil && name != "" {
		return name
	}
	return "its filesystem"
}
