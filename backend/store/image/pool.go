package image

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math"
	"slices"
	"strings"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

// maxPoolName is how many bytes a file name may have (NAME_MAX).
const maxPoolName = 255

// Pools lists the folders that images lie in, with the size of the filesystem that
// holds each, and what of it is free to users other than root.
func (s *Store) Pools(ctx context.Context) ([]backend.Pool, error) {
	s.mu.Lock()
	folders := s.resolveLocked(s.current)
	s.mu.Unlock()
	var pools []backend.Pool
	for _, folder := range folders {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("look at image folders: %w", err)
		}
		size, free, err := space(folder)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			continue // the folder of an image that is missing
		}
		if err != nil {
			s.warn(folder, "image folder cannot be read", err)
			continue
		}
		pools = append(pools, backend.Pool{
			Name:      poolName(folder),
			Driver:    driverName,
			Path:      folder,
			SizeBytes: size,
			FreeBytes: free,
		})
	}
	return pools, nil
}

// space is the size of the filesystem of folder and what is free in it, in bytes.
func space(folder string) (size, free int64, err error) {
	var st unix.Statfs_t
	if err := ignoringEINTR(func() error { return unix.Statfs(folder, &st) }); err != nil {
		return 0, 0, err
	}
	unit := uint64(max(st.Frsize, 0))
	return product(st.Blocks, unit), product(st.Bavail, unit), nil
}

// product is a*b, at most the largest int64.
func product(a, b uint64) int64 {
	if b != 0 && a > math.MaxInt64/b {
		return math.MaxInt64
	}
	return int64(a * b)
}

// poolName makes one path component of a folder, as systemd-escape --path does
// (systemd.unit(5), "String escaping for inclusion in unit names"): "/srv/xen" is
// "srv-xen". A name that would be too long is cut, and a hash makes it unique.
func poolName(folder string) string {
	var b strings.Builder
	for _, part := range strings.Split(folder, "/") {
		if part == "" || part == "." {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('-')
		}
		for i := 0; i < len(part); i++ {
			c := part[i]
			switch {
			case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == ':', c == '_', c == '.' && b.Len() > 0:
				b.WriteByte(c)
			default:
				fmt.Fprintf(&b, `\x%02x`, c)
			}
		}
	}
	name := b.String()
	if name == "" {
		return "-"
	}
	if len(name) <= maxPoolName {
		return name
	}
	h := fnv.New64a()
	h.Write([]byte(folder))
	return fmt.Sprintf("%s-%016x", name[:maxPoolName-17], h.Sum64())
}

func sortedKeys(m map[string]bool) []string {
	return slices.Sorted(maps.Keys(m))
}
