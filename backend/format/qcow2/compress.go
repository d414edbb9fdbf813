package qcow2

import (
	"bytes"
	"errors"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

const (
	maxZstdWindow    = 128 << 20 // what libzstd, and so QEMU, accepts; none is allocated
	maxDecompressing = 16        // clusters at a time, of all images: each takes three times its size
)

var decompressing = make(chan struct{}, maxDecompressing)

// cluster returns a compressed cluster by its L2 entry. Of several readers, one decompresses it.
func (im *image) cluster(entry uint64) ([]byte, error) {
	key := im.clusterKey(entry)
	if c, ok := clusters.Lookup(key); ok {
		return c, nil
	}
	return clusters.Load(key, func() ([]byte, int, error) {
		c := make([]byte, im.m.clusterSize())
		err := im.decompress(c, entry)
		return c, len(c), err
	})
}

func (im *image) clusterKey(entry uint64) clusterKey {
	return clusterKey{image: im.m.id, entry: entry}
}

// decompress reads a compressed cluster into dst, which is as large (QEMU's docs/interop/qcow2, "Compressed Clusters Descriptor"). Its length is
// known in sectors only, so what follows the cluster's own data is ignored.
func (im *image) decompress(dst []byte, entry uint64) error {
	shift := 62 - (im.m.clusterBits - 8)
	off := int64(entry & (1<<shift - 1))
	sectors := int64(entry>>shift) + 1
	n := sectors*sectorSize - off&(sectorSize-1)
	if off >= im.m.file.size {
		return corrupt("has a compressed cluster at byte %d, past its end at %d: it may have been copied incompletely", off, im.m.file.size)
	}
	n = min(n, im.m.file.size-off)
	decompressing <- struct{}{}
	defer func() { <-decompressing }()
	buf := im.buffers.Get().(*[]byte)
	defer im.buffers.Put(buf)
	src := (*buf)[:n]
	if err := im.m.file.readPadded(src, off); err != nil {
		return err
	}
	var err error
	if im.compression == compressionZstd {
		err = decompressZstd(dst, src)
	} else {
		err = decompressDeflate(dst, src)
	}
	if err != nil {
		return corrupt("has a compressed cluster at byte %d that cannot be decompressed (%v): check it with qemu-img check", off, err)
	}
	return nil
}

// deflater is klauspost's, which takes less than half the time of the standard library's. QEMU's window is of 12 bits; the
// larger one of a decompressor reads that as well.
type deflater struct {
	src bytes.Reader
	r   io.ReadCloser
}

var deflaters = sync.Pool{New: func() any {
	d := &deflater{}
	d.r = flate.NewReader(&d.src)
	return d
}}

func decompressDeflate(dst, src []byte) error {
	d := deflaters.Get().(*deflater)
	defer deflaters.Put(d)
	d.src.Reset(src)
	defer d.src.Reset(nil)
	if err := d.r.(flate.Resetter).Reset(&d.src, nil); err != nil {
		return err
	}
	_, err := io.ReadFull(d.r, dst)
	return err
}

var zstdDecoder = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow),
		zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderConcurrency(0))
})

// decompressZstd decompresses frames until dst is full.
func decompressZstd(dst, src []byte) error {
	decoder, err := zstdDecoder()
	if err != nil {
		return err
	}
	for out := dst[:0:len(dst)]; len(out) < len(dst); {
		n, err := zstdFrame(src)
		if err != nil {
			return err
		}
		if out, err = decoder.DecodeAll(src[:n], out); err != nil {
			return err
		}
		src = src[n:]
	}
	return nil
}

var errFrame = errors.New("no whole frame of zstd")

// zstdFrame is the length of the first frame in b (RFC 8878, 3.1.1), which is as long as its blocks are.
func zstdFrame(b []byte) (int, error) {
	var h zstd.Header
	if err := h.Decode(b); err != nil {
		return 0, err
	}
	at := int64(h.HeaderSize)
	if h.Skippable {
		at += int64(h.SkippableSize)
	} else {
		for last := false; !last; {
			if at+3 > int64(len(b)) {
				return 0, errFrame
			}
			block := uint32(b[at]) | uint32(b[at+1])<<8 | uint32(b[at+2])<<16
			last = block&1 != 0
			const rle = 1
			if size := int64(block >> 3); block>>1&3 == rle {
				at += 3 + 1
			} else {
				at += 3 + size
			}
		}
		if h.HasCheckSum {
			at += 4
		}
	}
	if at > int64(len(b)) {
		return 0, errFrame
	}
	return int(at), nil
}
