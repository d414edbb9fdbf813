package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"
)

// built is an image made by hand: a header, an L1 table of one entry in the third cluster, an L2 table in the
// fourth, and data in the fifth.
type built struct {
	b    []byte
	bits uint
}

func build(version uint32, bits uint) *built {
	cs := 1 << bits
	im := &built{make([]byte, 8*cs), bits}
	im.put(0, []byte(magic), be32(version), be64(0), be32(0), be32(uint32(bits)), be64(uint64(4*cs)), be32(0), be32(1), be64(uint64(2*cs)), be64(uint64(cs)), be32(1), be32(0), be64(0))
	if version == 3 {
		im.put(72, be64(0), be64(0), be64(0), be32(4), be32(112))
	}
	im.put(2*cs, be64(uint64(3*cs)))
	im.put(3*cs, be64(uint64(4*cs)))
	for i := range cs {
		im.b[4*cs+i] = byte(i*7 + 1)
	}
	return im
}

func (im *built) put(off int, values ...[]byte) *built {
	for _, v := range values {
		off += copy(im.b[off:], v)
	}
	return im
}

func (im *built) l2(i int, entry uint64) *built { return im.put(3<<im.bits+8*i, be64(entry)) }

func TestHeader_BoundsEachField(t *testing.T) {
	const bits, cs = 16, 1 << 16
	extension := func(kind, length uint32, b string) []byte {
		return append(append(be32(kind), be32(length)...), b...)
	}
	named := append(be32(extensionFeatureName), be32(featureEntryBytes)...)
	named = append(named, append([]byte{0, 9}, append([]byte("time\x1b travel"), make([]byte, 34)...)...)...)
	for _, c := range []struct {
		name string
		off  int
		put  [][]byte
		want error
		says string
	}{
		{"as it is", 0, nil, nil, ""},
		{"magic", 0, [][]byte{[]byte("QFI\xfa")}, backend.ErrCorrupt, "no qcow2 header"},
		{"version 1", 4, [][]byte{be32(1)}, backend.ErrUnsupported, "version 1"},
		{"version 4", 4, [][]byte{be32(4)}, backend.ErrUnsupported, "version 4"},
		{"backing name past the first cluster", 8, [][]byte{be64(cs + 1), be32(1)}, backend.ErrCorrupt, "outside of the first cluster"},
		{"backing name far away", 8, [][]byte{be64(math.MaxUint64), be32(1)}, backend.ErrCorrupt, "outside of the first cluster"},
		{"backing name across the first cluster", 8, [][]byte{be64(cs - 8), be32(9)}, backend.ErrCorrupt, "9 bytes"},
		{"backing name too long", 8, [][]byte{be64(200), be32(1024)}, backend.ErrCorrupt, "1024 bytes"},
		{"backing name of 4 GiB", 8, [][]byte{be64(200), be32(math.MaxUint32)}, backend.ErrCorrupt, "bytes for its backing file"},
		{"clusters of 256", 20, [][]byte{be32(8)}, backend.ErrCorrupt, "2^8"},
		{"clusters of 4M", 20, [][]byte{be32(22)}, backend.ErrCorrupt, "2^22"},
		{"clusters of 2^2^32", 20, [][]byte{be32(math.MaxUint32)}, backend.ErrCorrupt, "2^4294967295"},
		{"size over 2^63", 24, [][]byte{be64(1 << 63)}, backend.ErrCorrupt, "more than can be"},
		{"size of 2^64", 24, [][]byte{be64(math.MaxUint64)}, backend.ErrCorrupt, "more than can be"},
		{"size over what L1 maps", 24, [][]byte{be64(cs*cs/8 + 1)}, backend.ErrCorrupt, "needs 2"},
		{"size of 8 EiB", 24, [][]byte{be64(math.MaxInt64)}, backend.ErrCorrupt, "L1 table"},
		{"AES", 32, [][]byte{be32(1)}, backend.ErrUnsupported, "AES"},
		{"LUKS", 32, [][]byte{be32(2)}, backend.ErrUnsupported, "LUKS"},
		{"unknown encryption", 32, [][]byte{be32(77)}, backend.ErrUnsupported, "method 77"},
		{"L1 of no entries", 36, [][]byte{be32(0)}, backend.ErrCorrupt, "0 entries in its L1 table"},
		{"L1 of over 32 MiB", 36, [][]byte{be32(maxL1Bytes/8 + 1)}, backend.ErrCorrupt, "L1 table"},
		{"L1 of 32 GiB", 36, [][]byte{be32(math.MaxUint32)}, backend.ErrCorrupt, "L1 table"},
		{"L1 misaligned", 40, [][]byte{be64(2*cs + 8)}, backend.ErrCorrupt, "no cluster begins"},
		{"L1 beyond all", 40, [][]byte{be64(math.MaxUint64 - cs + 1)}, backend.ErrCorrupt, "L1 table"},
		{"refcounts misaligned", 48, [][]byte{be64(cs + 512)}, backend.ErrCorrupt, "refcount table"},
		{"no refcounts", 56, [][]byte{be32(0)}, backend.ErrCorrupt, "no refcount table"},
		{"refcounts of over 8 MiB", 56, [][]byte{be32(maxRefcountBytes/cs + 1)}, backend.ErrCorrupt, "refcount table"},
		{"too many snapshots", 60, [][]byte{be32(maxSnapshots + 1)}, backend.ErrCorrupt, "snapshot table"},
		{"snapshots misaligned", 60, [][]byte{be32(1), be64(1)}, backend.ErrCorrupt, "snapshot table"},
		{"dirty", 72, [][]byte{be64(1)}, nil, ""},
		{"corrupt", 72, [][]byte{be64(2)}, nil, ""},
		{"external data", 72, [][]byte{be64(4)}, backend.ErrUnsupported, "external data file"},
		{"compression without a type", 72, [][]byte{be64(8)}, backend.ErrCorrupt, "compression type 0"},
		{"unknown feature", 72, [][]byte{be64(1 << 9)}, backend.ErrUnsupported, "bit 9:"},
		{"unknown features", 72, [][]byte{be64(1<<5 | 1<<63)}, backend.ErrUnsupported, "bit 5, incompatible feature bit 63"},
		{"raw external data without any", 88, [][]byte{be64(2)}, backend.ErrCorrupt, "external data file"},
		{"unknown autoclear features", 88, [][]byte{be64(math.MaxUint64 &^ 2)}, nil, ""},
		{"unknown compatible features", 80, [][]byte{be64(math.MaxUint64)}, nil, ""},
		{"refcounts of 128 bits", 96, [][]byte{be32(7)}, backend.ErrCorrupt, "2^7"},
		{"short header", 100, [][]byte{be32(103)}, backend.ErrCorrupt, "103"},
		{"header over a cluster", 100, [][]byte{be32(cs + 8)}, backend.ErrCorrupt, "header"},
		{"compression without the feature", 104, [][]byte{{1}}, backend.ErrCorrupt, "compression type 1"},
		{"unknown compression", 104, [][]byte{{2}}, backend.ErrUnsupported, "compression type 2"},
		{"extension over a cluster", 112, [][]byte{extension(5, cs, "")}, backend.ErrCorrupt, "does not fit"},
		{"extension of 4 GiB", 112, [][]byte{extension(5, math.MaxUint32, "")}, backend.ErrCorrupt, "does not fit"},
		{"long name of a format", 112, [][]byte{extension(extensionFormat, 16, "")}, backend.ErrCorrupt, "16 bytes for the format"},
		{"extensions without end", 112, [][]byte{bytes.Repeat(extension(5, 0, ""), maxExtensions+1)}, backend.ErrCorrupt, "header extensions"},
		{"external data file's name without the feature", 112, [][]byte{extension(0x44415441, 4, "file")}, nil, ""},
	} {
		im := build(3, bits).put(c.off, c.put...)
		_, err := New().Header(memory(im.b))
		if !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %v that says %q", c.name, err, c.want, c.says)
		}
		if _, openErr := New().Open(memory(im.b), nil); fmt.Sprint(openErr) != fmt.Sprint(err) {
			t.Errorf("%s: Header says %v, Open %v", c.name, err, openErr)
		}
	}
	im := build(3, bits).put(72, be64(1<<9)).put(112, named)
	if _, err := New().Header(memory(im.b)); !errors.Is(err, backend.ErrUnsupported) || !strings.Contains(err.Error(), `bit 9 ("time? travel")`) {
		t.Errorf("a feature with a name: %v", err)
	}
	if _, err := New().Header(memory(build(3, 13).put(72, be64(incompatExtendedL2)).b)); !errors.Is(err, backend.ErrCorrupt) {
		t.Errorf("extended L2 entries in clusters of 8 KiB: %v", err)
	}
}

func TestHeader_OfACutFileIsAnError(t *testing.T) {
	whole := build(3, 9).put(8, be64(300), be32(100)).b
	for n := range 400 {
		if _, err := New().Header(memory(whole[:n])); !errors.Is(err, backend.ErrCorrupt) {
			t.Fatalf("of %d bytes: %v", n, err)
		}
	}
}

func TestHeader_EndsNamesAtNULAsQEMU(t *testing.T) {
	im := build(3, 16).put(8, be64(300), be32(20)).put(300, []byte("base\x00/etc/shadow1234")).put(112, be32(extensionFormat), be32(6), []byte("raw\x00xx"))
	h, err := New().Header(memory(im.b))
	if err != nil || h.Backing != "base" || h.BackingFormat != "raw" {
		t.Errorf("%+v, %v", h, err)
	}
}

func TestOpen_WantsTheBackingFileThatTheHeaderNames(t *testing.T) {
	without, with := build(3, 16), build(3, 16).put(8, be64(300), be32(4)).put(300, []byte("base"))
	if _, err := New().Open(memory(with.b), nil); !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("without: %v", err)
	}
	if _, err := New().Open(memory(without.b), memory{}); !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("with one too many: %v", err)
	}
}

func TestOpen_RefusesAnExternalDataFile(t *testing.T) {
	testneed.Tools(t, "qemu-img")
	dir := t.TempDir()
	path := filepath.Join(dir, "image")
	command(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+filepath.Join(dir, "raw"), path, "1M")
	if _, err := New().Open(openFile(t, path), nil); !errors.Is(err, backend.ErrUnsupported) || !strings.Contains(err.Error(), "external data file") {
		t.Errorf("%v", err)
	}
}

func TestRead_BoundsEachEntryOfATable(t *testing.T) {
	const cs = 1 << 16
	for _, c := range []struct {
		name     string
		version  uint32
		extended bool
		l1       uint64
		entry    [2]uint64
		want     error
	}{
		{"data", 3, false, 3 * cs, [2]uint64{4 * cs}, nil},
		{"copied", 3, false, 1<<63 | 3*cs, [2]uint64{1<<63 | 4*cs}, nil},
		{"no L2 table", 3, false, 0, [2]uint64{}, nil},
		{"L2 table misaligned", 3, false, 3*cs + 512, [2]uint64{}, backend.ErrCorrupt},
		{"L2 table past the end", 3, false, 8 * cs, [2]uint64{}, backend.ErrCorrupt},
		{"L2 table far past the end", 3, false, entryOffset &^ (cs - 1), [2]uint64{}, backend.ErrCorrupt},
		{"data misaligned", 3, false, 3 * cs, [2]uint64{4*cs + 512}, backend.ErrCorrupt},
		{"data past the end", 3, false, 3 * cs, [2]uint64{100 * cs}, nil},
		{"data far past the end", 3, false, 3 * cs, [2]uint64{entryOffset &^ (cs - 1)}, nil},
		{"zero", 3, false, 3 * cs, [2]uint64{1}, nil},
		{"zero, preallocated", 3, false, 3 * cs, [2]uint64{4*cs | 1}, nil},
		{"zero, preallocated and misaligned", 3, false, 3 * cs, [2]uint64{4*cs + 512 | 1}, backend.ErrCorrupt},
		{"zero in version 2", 2, false, 3 * cs, [2]uint64{1}, backend.ErrCorrupt},
		{"compressed, not so", 3, false, 3 * cs, [2]uint64{entryCompressed | 4*cs}, backend.ErrCorrupt},
		{"compressed, past the end", 3, false, 3 * cs, [2]uint64{entryCompressed | 100*cs}, backend.ErrCorrupt},
		{"compressed, all bits", 3, false, 3 * cs, [2]uint64{math.MaxUint64}, backend.ErrCorrupt},
		{"L2 table is the L1 table", 3, false, 2 * cs, [2]uint64{}, nil},
		{"L2 table is the header", 3, false, 1 << 63, [2]uint64{}, nil},
		{"cluster is its own L2 table", 3, false, 3 * cs, [2]uint64{3 * cs}, nil},
		{"subclusters", 3, true, 3 * cs, [2]uint64{4 * cs, 0xffffffff}, nil},
		{"subclusters, some zero", 3, true, 3 * cs, [2]uint64{4 * cs, 0xff00_00ff<<32 | 0x00ff_ff00}, nil},
		{"subclusters, allocated and zero", 3, true, 3 * cs, [2]uint64{4 * cs, 1<<40 | 1<<8}, backend.ErrCorrupt},
		{"subclusters, allocated nowhere", 3, true, 3 * cs, [2]uint64{0, 1 << 8}, backend.ErrCorrupt},
		{"subclusters, zero nowhere", 3, true, 3 * cs, [2]uint64{0, 1 << 40}, nil},
		{"subclusters, all zero and allocated", 3, true, 3 * cs, [2]uint64{4 * cs, math.MaxUint64}, backend.ErrCorrupt},
		{"subclusters, misaligned", 3, true, 3 * cs, [2]uint64{4*cs + 512, 1}, backend.ErrCorrupt},
		{"subclusters, bit 0", 3, true, 3 * cs, [2]uint64{4*cs | 1, 0xffffffff}, nil},
		{"subclusters, compressed", 3, true, 3 * cs, [2]uint64{entryCompressed | 4*cs, math.MaxUint64}, backend.ErrCorrupt},
	} {
		im := build(c.version, 16).put(2*cs, be64(c.l1)).l2(0, c.entry[0])
		if c.extended {
			im.put(72, be64(incompatExtendedL2)).l2(1, c.entry[1])
		}
		d, err := New().Open(memory(im.b), nil)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		p := make([]byte, 4*cs)
		n, err := d.ReadAt(p, 0)
		if !errors.Is(err, c.want) || err == nil && n != len(p) || err != nil && n != 0 {
			t.Errorf("%s: %d, %v, want %v", c.name, n, err, c.want)
		}
		if err != nil && !strings.Contains(err.Error(), "byte") {
			t.Errorf("%s: %v does not say where", c.name, err)
		}
		checkSearch(t, d)
		// QEMU agrees, but for tables past the end.
		testneed.Tools(t, "qemu-img")
		path := filepath.Join(t.TempDir(), "image")
		must(t, os.WriteFile(path, im.b, 0o600))
		if raw, ok := convert(t, path); ok != (err == nil) && !strings.Contains(c.name, "L2 table") {
			t.Errorf("%s: %v, qemu-img reads it: %v", c.name, err, ok)
		} else if err == nil && ok && !bytes.Equal(raw, p) {
			t.Errorf("%s: other bytes than qemu-img reads", c.name)
		}
	}
}

// convert is what qemu-img makes of an image, which it may refuse.
func convert(t testing.TB, path string) ([]byte, bool) {
	t.Helper()
	raw := path + ".raw"
	defer os.Remove(raw)
	if exec.Command("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw).Run() != nil {
		return nil, false
	}
	b, err := os.ReadFile(raw)
	must(t, err)
	return b, true
}

// checkSearch walks data and holes, and fails if that goes round and round.
func checkSearch(t testing.TB, d backend.Device) {
	t.Helper()
	s := d.(backend.Sparse)
	for off, n := int64(0), 0; off < d.Size(); n++ {
		data, err := s.NextData(off)
		if err != nil {
			if !errors.Is(err, backend.ErrRange) {
				t.Errorf("NextData(%d): %v", off, err)
			}
			break
		}
		hole, err := s.NextHole(data)
		if err != nil || data < off || hole <= data || hole > d.Size() || n > 100_000 {
			t.Fatalf("data from %d to %d, %v, asked from %d on", data, hole, err, off)
		}
		off = hole
	}
	if n := s.Allocated(); n < 0 || n > d.Size() {
		t.Errorf("%d of %d bytes are allocated", n, d.Size())
	}
}

func TestRead_OfDamagedTablesIsAnErrorOrAsQEMU(t *testing.T) {
	testneed.Tools(t, "qemu-img", "qemu-io")
	equal, refused, harder := 0, 0, 0
	for _, options := range []string{"cluster_size=512", "compat=0.10,cluster_size=512", "extended_l2=on,cluster_size=16k", "cluster_size=512,compression_type=zstd"} {
		path := create(t, options, "256k")
		cluster := int64(512)
		if strings.Contains(options, "16k") {
			cluster = 16 * kib
		}
		doWork(t, path, workload(5, 256*kib, cluster, 12, !strings.Contains(options, "0.10")))
		sound, err := os.ReadFile(path)
		must(t, err)
		h, err := readHeader(memory(sound))
		must(t, err)
		r := rand.New(rand.NewPCG(7, 7))
		for range 40 {
			b := bytes.Clone(sound)
			for range 1 + r.IntN(3) {
				at := h.l1.off + r.Int64N(int64(h.l1.entries)*8) // of the L1 table
				if r.IntN(4) > 0 {                               // of an L2 table
					l2 := int64(binary.BigEndian.Uint64(sound[h.l1.off+8*r.Int64N(int64(h.l1.entries)):]) & entryOffset)
					if l2 == 0 {
						continue
					}
					at = l2 + r.Int64N(cluster)
				} else if r.IntN(4) == 0 {
					at = 20 + r.Int64N(92)
				}
				b[at] ^= 1 << r.IntN(8)
			}
			damaged := filepath.Join(t.TempDir(), "image")
			must(t, os.WriteFile(damaged, b, 0o600))
			want, readable := convert(t, damaged)
			d, err := New().Open(memory(b), nil)
			var got []byte
			if err == nil {
				got = make([]byte, d.Size())
				_, err = d.ReadAt(got, 0)
			}
			switch {
			case err == nil && readable && !bytes.Equal(got, want):
				at := differAt(got, want)
				t.Errorf("%s: other bytes than qemu-img reads, at %d", options, at)
			case err == nil:
				equal++
			case readable && strings.Contains(err.Error(), "past its end"): // unallocated to qemu-img
				harder++
			case readable:
				t.Errorf("%s: %v, and qemu-img reads it", options, err)
			default:
				refused++
			}
			if err != nil && !errors.Is(err, backend.ErrCorrupt) && !errors.Is(err, backend.ErrUnsupported) && !errors.Is(err, backend.ErrInvalid) {
				t.Errorf("%s: %v", options, err)
			}
			if d != nil {
				checkSearch(t, d)
			}
		}
	}
	t.Logf("%d read, %d refused as qemu-img does, %d refused that it reads", equal, refused, harder)
	if equal == 0 || refused == 0 {
		t.Error("that is too few of one kind")
	}
}
