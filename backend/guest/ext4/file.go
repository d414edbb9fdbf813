package ext4

import (
	"fmt"
	"io"
	"sync/atomic"

	"domfs/backend"
)

// maxSeekRuns is how many runs NextData and NextHole look at: what follows then counts as
// data, which it may be read as.
const maxSeekRuns = 1 << 20

// file is the content of a regular file.
type file struct {
	fs   *FS
	in   inode
	last atomic.Pointer[run] // the run that was used last
	data []byte              // what is in the inode, of an inline file; zeros follow
}

// OpenFile opens a regular file: ErrIsDirectory, and ErrInvalid for what is neither.
func (fs *FS) OpenFile(ino uint64) (backend.File, error) {
	f := &file{fs: fs}
	if err := fs.inode(ino, &f.in); err != nil {
		return nil, err
	}
	switch f.in.fileType() {
	case backend.TypeRegular:
	case backend.TypeDir:
		return nil, fmt.Errorf("inode %d: %w", ino, backend.ErrIsDirectory)
	default:
		return nil, fmt.Errorf("inode %d is not a regular file: %w", ino, backend.ErrInvalid)
	}
	if f.in.flags&inodeEncrypt != 0 {
		return nil, fmt.Errorf("inode %d is encrypted, and its key is the guest's: %w", ino, backend.ErrNoKey)
	}
	if f.in.inline {
		f.data = f.in.inlineData()
	}
	f.in.raw, f.in.inlineRest = nil, nil // would keep a run of the inode table in memory
	return f, nil
}

func (f *file) Size() int64 { return int64(f.in.size) }

// Allocated is the space that the file holds with its metadata blocks, in bytes, as
// stat(2) says.
func (f *file) Allocated() int64 { return f.in.attr.Blocks512 * 512 }

func (f *file) Close() error { return nil }

// run is the run that a block of the file is in.
func (f *file) run(block uint64) (run, error) {
	if r := f.last.Load(); r != nil && r.has(block) {
		return *r, nil
	}
	r, err := f.fs.mapRun(&f.in, block)
	if err != nil {
		return run{}, err
	}
	f.last.Store(&r)
	return r, nil
}

// at is the run at an offset within the file, how many bytes of it and of the file
// follow, and where they lie.
func (f *file) at(off int64) (r run, length, phys int64, err error) {
	bits := f.fs.sb.blockBits
	block := uint64(off) >> bits
	if r, err = f.run(block); err != nil {
		return
	}
	length = f.Size() - off
	if end := r.end(); end <= f.in.size>>bits {
		length = min(length, int64(end<<bits)-off)
	}
	if r.state != runHole {
		phys = int64((r.phys+block-r.logical)<<bits) + off&int64(f.fs.sb.blockBytes()-1)
	}
	return
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("inode %d: read at offset %d: %w", f.in.ino, off, backend.ErrInvalid)
	}
	if f.in.inline {
		return f.readInline(p, off)
	}
	var n int
	for n < len(p) {
		if off >= f.Size() {
			return n, io.EOF
		}
		r, length, phys, err := f.at(off)
		if err != nil {
			return n, err
		}
		part := p[n:]
		part = part[:min(int64(len(part)), length)]
		if r.state == runWritten {
			if err := f.fs.readAt(part, phys); err != nil {
				return n, fmt.Errorf("inode %d: %w", f.in.ino, err)
			}
		} else {
			clear(part)
		}
		n += len(part)
		off += int64(len(part))
	}
	return n, nil
}

// Locate finds written bytes on the device.
func (f *file) Locate(off, length int64) (backend.Location, bool) {
	if off < 0 || off >= f.Size() || length <= 0 || f.in.inline {
		return backend.Location{}, false
	}
	r, rest, phys, err := f.at(off)
	if err != nil || r.state != runWritten {
		return backend.Location{}, false
	}
	return f.fs.locate(phys, min(length, rest))
}

// NextData finds written blocks: unwritten ones are a hole, as to the kernel as long as
// nothing of them is in its cache.
func (f *file) NextData(off int64) (int64, error) { return f.seek(off, true) }

// NextHole finds blocks that are not written, or the end.
func (f *file) NextHole(off int64) (int64, error) { return f.seek(off, false) }

func (f *file) seek(off int64, data bool) (int64, error) {
	if off < 0 || off >= f.Size() {
		return 0, backend.ErrRange
	}
	if f.in.inline {
		return f.seekInline(off, data)
	}
	for i := 0; off < f.Size(); i++ {
		if i == maxSeekRuns {
			if data {
				return off, nil
			}
			break
		}
		r, length, _, err := f.at(off)
		if err != nil {
			return 0, err
		}
		if (r.state == runWritten) == data {
			return off, nil
		}
		off += length
	}
	if data {
		return 0, backend.ErrRange
	}
	return f.Size(), nil
}
