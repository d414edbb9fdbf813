package qcow2

import (
	"bytes"
	stdflate "compress/flate"
	"io"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"
)

// benchImage is an image of 256 MiB of bytes, converted with options.
func benchImage(b *testing.B, options ...string) (raw, path string) {
	testneed.Tools(b, "qemu-img")
	raw = rawFile(b, 256*mib)
	path = filepath.Join(b.TempDir(), "image")
	command(b, "qemu-img", append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, options...), raw, path)...)
	return raw, path
}

// benchRead reads whole Devices in pieces, in order or at random.
func benchRead(b *testing.B, d backend.Device, piece int64, random bool) {
	p := make([]byte, piece)
	r := rand.New(rand.NewPCG(1, 1))
	off := int64(0)
	b.SetBytes(piece)
	b.ReportAllocs()
	for b.Loop() {
		if random {
			off = r.Int64N(d.Size()/piece) * piece
		} else if off += piece; off+piece > d.Size() {
			off = 0
		}
		if _, err := d.ReadAt(p, off); err != nil && err != io.EOF {
			b.Fatal(err)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	raw, path := benchImage(b)
	_, small := benchImage(b, "-o", "cluster_size=4k")
	_, extended := benchImage(b, "-o", "extended_l2=on")
	_, deflate := benchImage(b, "-c")
	_, zstd := benchImage(b, "-c", "-o", "compression_type=zstd")
	for _, c := range []struct {
		name string
		d    backend.Device
	}{
		{"raw file", openFile(b, raw)}, {"64k", openChain(b, path)}, {"4k", openChain(b, small)}, {"extended", openChain(b, extended)},
		{"deflate", openChain(b, deflate)}, {"zstd", openChain(b, zstd)},
	} {
		b.Run(c.name+"/1M", func(b *testing.B) { benchRead(b, c.d, mib, false) })
		b.Run(c.name+"/128k", func(b *testing.B) { benchRead(b, c.d, 128*kib, false) })
		b.Run(c.name+"/4k at random", func(b *testing.B) { benchRead(b, c.d, 4*kib, true) })
	}
}

// BenchmarkDeflate compares the decompressor with the standard library's.
func BenchmarkDeflate(b *testing.B) {
	text := bytes.Repeat([]byte("the quick brown fox jumps over the lazy dog, again and again; "), 1100)[:64*kib]
	r := rand.New(rand.NewPCG(1, 1))
	for range 4000 {
		text[r.IntN(len(text))] = byte(r.Uint32())
	}
	var buf bytes.Buffer
	w, err := stdflate.NewWriter(&buf, 9)
	must(b, err)
	w.Write(text)
	must(b, w.Close())
	dst := make([]byte, len(text))
	b.Run("klauspost", func(b *testing.B) {
		b.SetBytes(int64(len(dst)))
		for b.Loop() {
			must(b, decompressDeflate(dst, buf.Bytes()))
		}
	})
	std := stdflate.NewReader(nil)
	b.Run("standard", func(b *testing.B) {
		b.SetBytes(int64(len(dst)))
		for b.Loop() {
			must(b, std.(stdflate.Resetter).Reset(bytes.NewReader(buf.Bytes()), nil))
			_, err := io.ReadFull(std, dst)
			must(b, err)
		}
	})
}
