package image

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"domfs/backend/proc"

	"golang.org/x/sys/unix"
)

// QEMU's image locks: byte 100+n is locked for reading by whoever uses permission n
// (block/file-posix.c, RAW_LOCK_PERM_BASE; the permissions are BLK_PERM_* in QEMU's
// include/block/block-common.h). Those that write are 1 (write), 2 (write unchanged data)
// and 3 (resize).
const (
	qemuWriteLock      = 100 + 1
	qemuWriteLockBytes = 3
)

// maxHolderAge is how long a fruitless search of /proc is not repeated.
const maxHolderAge = time.Second

// unknownHolder stands for a process that cannot be found: of another user, or on
// another host.
const unknownHolder = "another process"

// Bounds for one search of /proc.
const (
	maxProcesses = 1 << 17
	maxFDs       = 1 << 16
)

// processHolder is what is known of who holds a lock on a file.
type processHolder struct {
	name   string // "" if it was not found
	fdPath string // its descriptor in /proc
	asked  time.Time
}

// holderQuery collects files, then finds who uses each: the dear parts are done
// once for all of them.
type holderQuery struct {
	s       *Store
	files   map[int]fileID
	backing map[int][]backingID // the files behind those
	locks   map[fileID]int      // who holds a writer's lock: a process id, or -1
}

type backingID struct {
	fileID
	path string
}

func (s *Store) newHolderQuery() *holderQuery {
	return &holderQuery{s: s, files: map[int]fileID{}, backing: map[int][]backingID{}, locks: map[fileID]int{}}
}

// ask asks who uses the open file f, under the number i.
func (h *holderQuery) ask(i int, f *os.File, st *unix.Stat_t) {
	id := idOf(st)
	h.files[i] = id
	if pid, locked := qemuWriter(f); locked {
		h.locks[id] = pid
	}
}

// askBacking asks who writes to the files behind the image with the number i.
func (h *holderQuery) askBacking(i int, c chain) {
	for j := range c[1:] {
		k := &c[1+j]
		id := idOf(k.st)
		h.backing[i] = append(h.backing[i], backingID{id, k.path})
		if _, asked := h.locks[id]; asked {
			continue
		}
		if pid, locked := qemuWriter(k.f); locked {
			h.locks[id] = pid
		}
	}
}

// answer names the holders by the numbers of their files. Who writes to a file behind an image
// has that image in use as well, for its bytes change.
func (h *holderQuery) answer() map[int]string {
	if len(h.files) == 0 {
		return nil
	}
	names := h.s.lockHolders(h.locks)
	for id, loop := range h.s.loopHolders() {
		if names[id] == "" {
			names[id] = loop
		}
	}
	answer := map[int]string{}
	for i, id := range h.files {
		if name := names[id]; name != "" {
			answer[i] = name
			continue
		}
		for _, k := range h.backing[i] {
			if name := names[k.fileID]; name != "" {
				answer[i] = name + ", which writes to its backing file " + k.path
				break
			}
		}
	}
	return answer
}

// qemuWriter tells whether somebody holds QEMU's lock for a permission to write. pid
// is -1 for an open file description lock, which QEMU takes where it can.
func qemuWriter(f *os.File) (pid int, locked bool) {
	lk := unix.Flock_t{Type: unix.F_WRLCK, Whence: unix.SEEK_SET, Start: qemuWriteLock, Len: qemuWriteLockBytes}
	err := control(f, func(fd int) error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &lk) })
	if err != nil || lk.Type == unix.F_UNLCK {
		return 0, false // a filesystem without locks has none that are held
	}
	return int(lk.Pid), true
}

// lockHolders names the processes behind locks. A process found before is only
// looked at again; /proc is searched once for all others.
func (s *Store) lockHolders(locks map[fileID]int) map[fileID]string {
	names := map[fileID]string{}
	missing := map[fileID]bool{}
	now := time.Now()
	s.mu.Lock()
	for id := range s.holders {
		if _, ok := locks[id]; !ok {
			delete(s.holders, id)
		}
	}
	cached := make(map[fileID]processHolder, len(locks))
	for id := range locks {
		cached[id] = s.holders[id]
	}
	s.mu.Unlock()

	for id, pid := range locks {
		names[id] = unknownHolder
		if pid > 0 {
			names[id] = proc.Name(s.procfs, strconv.Itoa(pid))
			continue
		}
		c := cached[id]
		switch {
		case c.name != "" && s.holdsFile(c.fdPath, id):
			names[id] = c.name
		case c.name == "" && now.Sub(c.asked) < maxHolderAge:
		default:
			missing[id] = true
		}
	}
	if len(missing) == 0 {
		return names
	}
	found := s.searchProcesses(missing)
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range missing {
		h := found[id]
		h.asked = now
		s.holders[id] = h
		if h.name != "" {
			names[id] = h.name
		}
	}
	return names
}

// holdsFile tells whether a descriptor in /proc still is the file.
func (s *Store) holdsFile(fdPath string, id fileID) bool {
	f, ok := proc.OpenFile(fdPath)
	return ok && fileID{f.Dev, f.Ino} == id
}

// searchProcesses looks through /proc for who has files open for writing, other than this process.
func (s *Store) searchProcesses(files map[fileID]bool) map[fileID]processHolder {
	found := map[fileID]processHolder{}
	self := strconv.Itoa(os.Getpid())
	for _, pid := range proc.List(s.procfs, maxProcesses) {
		if pid == self || pid == "" || pid[0] < '0' || pid[0] > '9' {
			continue
		}
		if len(found) == len(files) {
			break
		}
		folder := filepath.Join(s.procfs, pid, "fd")
		for _, fd := range proc.List(folder, maxFDs) {
			path := filepath.Join(folder, fd)
			f, ok := proc.OpenFile(path)
			id := fileID{f.Dev, f.Ino}
			if !ok || !files[id] {
				continue
			}
			var link unix.Stat_t
			// proc(5): the link's mode tells how the file was opened.
			if unix.Lstat(path, &link) != nil || link.Mode&0o200 == 0 {
				continue
			}
			found[id] = processHolder{name: proc.Name(s.procfs, pid), fdPath: path}
		}
	}
	return found
}

// writerOf names who has a file open for writing, "" if nobody can be found.
func (s *Store) writerOf(id fileID) string {
	if h := s.searchProcesses(map[fileID]bool{id: true})[id]; h.name != "" {
		return h.name
	}
	return s.loopHolders()[id]
}

// loopBinding is the file behind a loop device. It holds as long as the kernel's sequence
// number of the disk stays.
type loopBinding struct {
	diskseq string
	backing string
	id      fileID
}

// loopHolders names the writable loop devices by the files behind them.
func (s *Store) loopHolders() map[fileID]string {
	holders := map[fileID]string{}
	bound := map[string]bool{}
	for _, name := range proc.List(filepath.Join(s.sysfs, "block"), 1<<16) {
		if !strings.HasPrefix(name, "loop") {
			continue
		}
		sys := filepath.Join(s.sysfs, "block", name)
		backing, err := os.ReadFile(filepath.Join(sys, "loop", "backing_file"))
		if err != nil {
			continue // not bound
		}
		bound[name] = true
		if ro, err := os.ReadFile(filepath.Join(sys, "ro")); err == nil && strings.TrimSpace(string(ro)) == "1" {
			continue // it does not write
		}
		diskseq, _ := os.ReadFile(filepath.Join(sys, "diskseq")) // Linux 5.15
		b := loopBinding{diskseq: string(diskseq), backing: string(backing)}
		s.mu.Lock()
		known, ok := s.loops[name]
		s.mu.Unlock()
		if ok && b.diskseq != "" && known.diskseq == b.diskseq && known.backing == b.backing {
			b.id = known.id
		} else {
			if b.id, err = loopFile(name, strings.TrimSuffix(b.backing, "\n")); err != nil {
				continue
			}
			s.mu.Lock()
			s.loops[name] = b
			s.mu.Unlock()
		}
		holders[b.id] = "loop device /dev/" + name
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.loops {
		if !bound[name] {
			delete(s.loops, name)
		}
	}
	return holders
}

// loopFile finds the file behind a loop device. The device knows it best (loop(4),
// LOOP_GET_STATUS64); without access to the device its path must do.
func loopFile(name, backing string) (fileID, error) {
	fd, err := unix.Open("/dev/"+name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err == nil {
		defer unix.Close(fd)
		info, err := unix.IoctlLoopGetStatus64(fd)
		if err == nil {
			return fileID{info.Device, info.Inode}, nil
		}
		if errors.Is(err, unix.ENXIO) {
			return fileID{}, err // detached meanwhile
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(backing, &st); err != nil {
		return fileID{}, err
	}
	return idOf(&st), nil
}
