package ext4

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"domfs/backend"
)

func BenchmarkReadDir_20000EntriesWithAttributes(b *testing.B) {
	path := largeDirectory(b, 20_000)
	fs, _ := openImage(b, path)
	dir := lookup(b, fs, "large").Ino
	for _, warm := range []bool{true, false} {
		b.Run(fmt.Sprintf("cached=%v", warm), func(b *testing.B) {
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				if !warm {
					fs.cache.clear()
				}
				must(b, fs.ReadDir(dir, 0, true, func(e *backend.DirEntry) bool { n++; return true }))
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}

func BenchmarkLookup_20000Entries(b *testing.B) {
	path := largeDirectory(b, 20_000)
	fs, _ := openImage(b, path)
	dir := lookup(b, fs, "large").Ino
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		_, err := fs.Lookup(dir, fmt.Sprintf("%d a name in a large directory", i*7919%20_000))
		must(b, err)
	}
}

func BenchmarkReadAt_Sequential(b *testing.B) {
	path := mkfs(b, 400, false, "-t", "ext4", "-O", "^has_journal")
	const size = 256 * mib
	populate(b, path, func(dir string) {
		must(b, os.WriteFile(filepath.Join(dir, "file"), content(1, size), 0o644))
		f, err := os.Create(filepath.Join(dir, "fragmented"))
		must(b, err)
		for i := range int64(8000) {
			_, err := f.WriteAt([]byte("data"), i*8192)
			must(b, err)
		}
		must(b, f.Close())
	})
	fs, _ := openImage(b, path)
	buf := make([]byte, 128<<10)
	for _, name := range []string{"file", "fragmented"} {
		f, err := fs.OpenFile(lookup(b, fs, name).Ino)
		must(b, err)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(buf)))
			var off int64
			for b.Loop() {
				if off >= f.Size() {
					off = 0
				}
				n, _ := f.ReadAt(buf, off)
				off += int64(n)
			}
		})
	}
}

// BenchmarkOpen_ReplaysTheJournal opens a filesystem whose journal is full of blocks that
// have checksums.
func BenchmarkOpen_ReplaysTheJournal(b *testing.B) {
	path := mkfs(b, 512, false, "-t", "ext4", "-b", "4096", "-J", "size=128")
	dir, umount := mount(b, path, "rw,data=journal")
	must(b, os.WriteFile(filepath.Join(dir, "file"), content(1, 90*mib), 0o600))
	syncFS(b, dir)
	dirty := copyFile(b, path)
	umount()
	var bytes int
	for b.Loop() {
		fs, _ := openImage(b, dirty)
		bytes = len(fs.over.replayed) * fs.sb.blockBytes()
	}
	b.SetBytes(int64(bytes))
}
