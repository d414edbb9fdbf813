package phy

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"domfs/backend"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const (
	storeName  = "phy"
	driverName = "phy"
	formatRaw  = "raw"
)

var _ backend.Store = (*Store)(nil)

// Store is the block devices of a host. It is safe for concurrent use.
type Store struct {
	formats []backend.Format
	sysfs   string
	procfs  string

	mu      sync.Mutex
	claims  map[uint64]claim  // by device number; guarded by mu
	headers map[uint64]header // by device number; guarded by mu
}

// New makes the store. Its devices are raw or hold an image in one of formats. It has nothing to
// log: what is wrong with a device is its volume's Err.
func New(formats []backend.Format, _ *zap.Logger) *Store {
	return &Store{formats: formats, sysfs: "/sys", procfs: "/proc", claims: map[uint64]claim{}, headers: map[uint64]header{}}
}

// Name is "phy".
func (s *Store) Name() string { return storeName }

// Pools lists none: nobody takes space from a device.
func (s *Store) Pools(context.Context) ([]backend.Pool, error) { return nil, nil }

// Volumes finds the block devices among disks, and everything else below /dev. Raw
// devices are not opened to learn their size.
func (s *Store) Volumes(ctx context.Context, disks []backend.Disk) ([]backend.Volume, error) {
	volumes := make([]backend.Volume, len(disks))
	var users *users
	for i, d := range disks {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("look for block devices: %w", err)
		}
		v, rdev, ok := s.volume(d)
		if !ok {
			continue
		}
		if v.Err == nil || rdev != 0 {
			if users == nil {
				users = s.readUsers()
			}
			v.Holder = s.holder(users, v.ID, rdev)
		}
		volumes[i] = v
	}
	return volumes, nil
}

// volume is the device behind one disk with its number; false if it is not this store's.
func (s *Store) volume(d backend.Disk) (v backend.Volume, rdev uint64, ok bool) {
	if d.Script != "" || d.BackendDomain != "" || !strings.HasPrefix(d.Source, "/") {
		return v, 0, false
	}
	path := filepath.Clean(d.Source)
	inDev := strings.HasPrefix(path, "/dev/")
	var st unix.Stat_t
	err := ignoringEINTR(func() error { return unix.Stat(path, &st) })
	isBlock := err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK
	isFile := err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG // an image in /dev/shm
	if !inDev && !isBlock || isFile {
		return v, 0, false
	}
	v = backend.Volume{Store: storeName, ID: path, Driver: driverName, Format: d.Format}
	if v.Format == "" {
		v.Format = formatRaw
	}
	switch {
	case err != nil:
		v.Err = failed("find", path, err)
		return v, 0, true
	case !isBlock:
		v.Err = backend.Because(backend.ErrInvalid, "%s is no block device: correct the domain's configuration", path)
		return v, 0, true
	}
	rdev = uint64(st.Rdev)
	if v.SizeBytes, err = s.size(rdev); err != nil {
		v.Err = failed("find the size of", path, err)
	} else {
		v.Generation = s.generation(rdev, v.SizeBytes)
	}
	format, err := s.formatOf(v.Format)
	switch {
	case err != nil:
		v.Err = fmt.Errorf("%s: %w", path, err)
	case format != nil && v.Err == nil:
		v.SizeBytes, v.Err = s.guestBytes(v, format, rdev)
	}
	return v, rdev, true
}

// sysPath is the device's folder in sysfs.
func (s *Store) sysPath(rdev uint64) string {
	return filepath.Join(s.sysfs, "dev/block", fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev)))
}

// size reads the device's size from sysfs, which counts 512-byte sectors.
func (s *Store) size(rdev uint64) (int64, error) {
	b, err := os.ReadFile(filepath.Join(s.sysPath(rdev), "size"))
	if err != nil {
		return 0, unix.ENXIO // a node without a device
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || sectors < 0 || sectors > math.MaxInt64/512 {
		return 0, unix.EIO
	}
	return sectors * 512, nil
}

// generation mixes the counts of what was written, as doc.go says.
func (s *Store) generation(rdev uint64, sizeBytes int64) uint64 {
	h := fnv.New64a()
	number := func(n uint64) {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], n)
		h.Write(b[:])
	}
	number(rdev)
	number(uint64(sizeBytes))
	sys := s.sysPath(rdev)
	folders := []string{sys}
	disk := sys
	if _, err := os.Stat(filepath.Join(sys, "partition")); err == nil {
		if real, err := filepath.EvalSymlinks(sys); err == nil {
			disk = filepath.Dir(real)
			folders = append(folders, disk)
		}
	}
	for _, folder := range folders {
		b, _ := os.ReadFile(filepath.Join(folder, "stat"))
		// Fields 5 and 7 are writes and sectors written, 12 and 14 discards.
		fields := strings.Fields(string(b))
		for _, i := range []int{4, 6, 11, 13} {
			if i < len(fields) {
				h.Write([]byte(fields[i] + " "))
			}
		}
	}
	diskseq, _ := os.ReadFile(filepath.Join(disk, "diskseq"))
	h.Write(diskseq)
	if counting, err := os.ReadFile(filepath.Join(disk, "queue/iostats")); err != nil || strings.TrimSpace(string(counting)) == "0" {
		number(uint64(time.Now().Unix()))
	}
	return h.Sum64()
}

// ignoringEINTR repeats a call that a signal interrupted.
func ignoringEINTR(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
