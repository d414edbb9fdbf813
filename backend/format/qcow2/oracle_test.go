package qcow2

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"
)

// workload is commands of qemu-io that write, zero and discard at random.
func workload(seed uint64, size, cluster int64, n int, version3 bool) []string {
	r := rand.New(rand.NewPCG(seed, uint64(cluster)))
	var commands []string
	for range n {
		length := (r.Int64N(4*cluster)/512 + 1) * 512
		off := r.Int64N(size-length+1) &^ 511
		pattern := 1 + r.IntN(255)
		switch r.IntN(8) {
		case 0:
			if version3 {
				commands = append(commands, fmt.Sprintf("write -z %d %d", off, length))
			}
		case 1:
			if version3 {
				commands = append(commands, fmt.Sprintf("write -zu %d %d", off, length))
			}
		case 2:
			commands = append(commands, fmt.Sprintf("discard %d %d", off&^(cluster-1), cluster))
		case 3:
			// Compressed ones are whole clusters that were free before.
			commands = append(commands, fmt.Sprintf("write -c -P %d %d %d", pattern, off&^(cluster-1), cluster))
		default:
			commands = append(commands, fmt.Sprintf("write -P %d %d %d", pattern, off, length))
		}
	}
	return commands
}

func TestRead_AsQEMUForEachOption(t *testing.T) {
	for _, c := range []struct {
		options string
		size    int64
		cluster int64
	}{
		{"compat=0.10", 8 * mib, 64 * kib},
		{"compat=1.1", 8 * mib, 64 * kib},
		{"cluster_size=512", mib, 512},
		{"cluster_size=1k", mib, kib},
		{"compat=0.10,cluster_size=2k", 2 * mib, 2 * kib},
		{"cluster_size=4k", 4 * mib, 4 * kib},
		{"cluster_size=8k", 4 * mib, 8 * kib},
		{"cluster_size=16k", 4 * mib, 16 * kib},
		{"cluster_size=32k", 4 * mib, 32 * kib},
		{"cluster_size=128k", 8 * mib, 128 * kib},
		{"cluster_size=256k", 8 * mib, 256 * kib},
		{"cluster_size=512k", 16 * mib, 512 * kib},
		{"cluster_size=1M", 16 * mib, mib},
		{"cluster_size=2M", 32 * mib, 2 * mib},
		{"preallocation=off", 8 * mib, 64 * kib},
		{"preallocation=metadata", 8 * mib, 64 * kib},
		{"preallocation=falloc", 8 * mib, 64 * kib},
		{"preallocation=full", 8 * mib, 64 * kib},
		{"preallocation=metadata,cluster_size=512", mib, 512},
		{"preallocation=metadata,extended_l2=on,cluster_size=16k", 4 * mib, 16 * kib},
		{"lazy_refcounts=on", 8 * mib, 64 * kib},
		{"lazy_refcounts=off", 8 * mib, 64 * kib},
		{"refcount_bits=1", 4 * mib, 64 * kib},
		{"refcount_bits=2", 4 * mib, 64 * kib},
		{"refcount_bits=4", 4 * mib, 64 * kib},
		{"refcount_bits=8", 4 * mib, 64 * kib},
		{"refcount_bits=32", 4 * mib, 64 * kib},
		{"refcount_bits=64", 4 * mib, 64 * kib},
		{"extended_l2=on,cluster_size=16k", 4 * mib, 16 * kib},
		{"extended_l2=on,cluster_size=64k", 8 * mib, 64 * kib},
		{"extended_l2=on,cluster_size=128k", 8 * mib, 128 * kib},
		{"extended_l2=on,cluster_size=2M", 32 * mib, 2 * mib},
		{"compression_type=zlib", 8 * mib, 64 * kib},
		{"compression_type=zstd", 8 * mib, 64 * kib},
		{"compression_type=zstd,cluster_size=512", mib, 512},
		{"compression_type=zstd,cluster_size=2M", 32 * mib, 2 * mib},
		{"compression_type=zstd,extended_l2=on,cluster_size=32k", 4 * mib, 32 * kib},
	} {
		t.Run(c.options, func(t *testing.T) {
			path := create(t, c.options, fmt.Sprint(c.size))
			asQEMU(t, path, openChain(t, path)) // as it was made
			doWork(t, path, workload(1, c.size, c.cluster, 40, !strings.Contains(c.options, "0.10")))
			asQEMU(t, path, openChain(t, path))
		})
	}
}

// TestRead_KnowsEachOptionOfQEMU fails when qemu-img learns a new one.
func TestRead_KnowsEachOptionOfQEMU(t *testing.T) {
	testneed.Tools(t, "qemu-img")
	known := "backing_file backing_fmt cluster_size compat compression_type data_file data_file_raw encrypt encryption extended_l2 lazy_refcounts preallocation refcount_bits size keep_data_file"
	for line := range strings.Lines(string(command(t, "qemu-img", "create", "-f", "qcow2", "-o", "help"))) {
		if name, _, ok := strings.Cut(line, "=<"); ok {
			name, _, _ = strings.Cut(strings.TrimSpace(name), ".")
			if !strings.Contains(" "+known+" ", " "+name+" ") {
				t.Errorf("%s is in no test here", name)
			}
		}
	}
}

// rawFile has bytes that compress, bytes that do not, and holes.
func rawFile(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "raw")
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	r := rand.New(rand.NewPCG(3, 3))
	b := make([]byte, 16*kib)
	for off := int64(0); off < size; off += int64(len(b)) {
		kind := r.IntN(4)
		if kind == 0 {
			continue
		}
		for i := range b {
			switch kind {
			case 1:
				b[i] = byte(r.Uint32())
			case 2:
				b[i] = "the quick brown fox "[i%20] + byte(r.IntN(100)/99)
			case 3:
				b[i] = byte(off >> 14)
			}
		}
		_, err := f.WriteAt(b[:min(int64(len(b)), size-off)], off)
		must(t, err)
	}
	must(t, f.Truncate(size))
	return path
}

func TestRead_AsQEMUWhereConvertedCompressed(t *testing.T) {
	testneed.Tools(t, "qemu-img")
	raw := rawFile(t, 6*mib+1536)
	for _, options := range []string{
		"compat=0.10", "cluster_size=512", "cluster_size=4k", "cluster_size=64k", "cluster_size=2M", "extended_l2=on,cluster_size=16k",
		"compression_type=zstd,cluster_size=512", "compression_type=zstd,cluster_size=4k", "compression_type=zstd", "compression_type=zstd,cluster_size=2M",
		"compression_type=zstd,extended_l2=on",
	} {
		t.Run(options, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "image")
			command(t, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw, path)
			want, err := os.ReadFile(raw)
			must(t, err)
			d := openChain(t, path)
			sameBytes(t, want, d)
			sameMap(t, path, d)
		})
	}
}

func TestRead_AsQEMUThroughAChain(t *testing.T) {
	testneed.Tools(t, "qemu-img", "qemu-io")
	dir := t.TempDir()
	base := filepath.Join(dir, "0")
	command(t, "cp", "--sparse=always", rawFile(t, 3*mib+512), base)
	format := "raw"
	for i, c := range []struct {
		options string
		size    int64
		cluster int64
	}{
		{"cluster_size=4k", 4 * mib, 4 * kib}, // longer than its backing
		{"cluster_size=64k,compression_type=zstd", 2 * mib, 64 * kib},
		{"cluster_size=16k,extended_l2=on", 6 * mib, 16 * kib},
		{"compat=0.10,cluster_size=512", 6*mib - 1024, 512},
		{"cluster_size=2M", 8 * mib, 2 * mib},
		{"extended_l2=on,cluster_size=64k", 7*mib + 512, 64 * kib},
	} {
		path := filepath.Join(dir, fmt.Sprint(i+1))
		command(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", c.options, "-b", fmt.Sprint(i), "-F", format, path, fmt.Sprint(c.size))
		format = "qcow2"
		asQEMU(t, path, openChain(t, path))
		doWork(t, path, workload(uint64(i), c.size&^(c.cluster-1), c.cluster, 20, !strings.Contains(c.options, "0.10")))
		asQEMU(t, path, openChain(t, path))
	}
}

func TestRead_AsQEMUAfterResize(t *testing.T) {
	base := create(t, "cluster_size=4k", "1M")
	qemuIO(t, base, "write -P 1 0 1M")
	path := create(t, "cluster_size=4k", "512k", "-b", base, "-F", "qcow2")
	qemuIO(t, path, "write -P 2 8k 4k")
	for _, size := range []string{"700416", "1M", "3M", "40M", "2M", "100k"} { // past the backing, and another L2 table
		command(t, "qemu-img", "resize", "-q", "--shrink", path, size)
		asQEMU(t, path, openChain(t, path))
		qemuIO(t, path, "write -P 3 64k 8k")
		asQEMU(t, path, openChain(t, path))
	}
	for _, mode := range []string{"off", "metadata", "falloc", "full"} {
		command(t, "qemu-img", "resize", "-q", "--preallocation="+mode, path, "+1M")
		asQEMU(t, path, openChain(t, path))
	}
}

func TestOpen_TakesAnImageOfNoBytes(t *testing.T) {
	path := create(t, "", "0")
	asQEMU(t, path, openChain(t, path))
}

func TestRead_AsQEMUAfterACrash(t *testing.T) {
	path := create(t, "lazy_refcounts=on", "4M")
	if out, err := exec.Command("qemu-io", "-c", "write -P 5 1M 300k", "-c", "flush", "-c", "abort", path).CombinedOutput(); err == nil {
		t.Fatalf("qemu-io did not crash: %s", out)
	}
	file := openFile(t, path)
	h, err := readHeader(file)
	must(t, err)
	if h.incompatible&incompatDirty == 0 {
		t.Fatal("the image is not dirty")
	}
	d := openChain(t, path)
	if w := d.(*image).Warnings(); len(w) != 0 {
		t.Errorf("warnings: %q", w)
	}
	got := make([]byte, 512)
	_, err = d.ReadAt(got, mib)
	must(t, err)
	if got[0] != 5 || got[511] != 5 {
		t.Error("what was written is not read")
	}
	asQEMU(t, path, d)
}

func TestOpen_ReadsAnImageMarkedCorruptAndSaysSo(t *testing.T) {
	path := create(t, "", "1M")
	qemuIO(t, path, "write -P 7 0 128k")
	patch(t, path, 72, be64(incompatCorrupt)...)
	d := openChain(t, path)
	if w := d.(*image).Warnings(); len(w) != 1 || !strings.Contains(w[0], "marked corrupt") {
		t.Errorf("warnings: %q", w)
	}
	asQEMU(t, path, d)
}

func TestRead_AsQEMUPastTheEndOfTheFile(t *testing.T) {
	for _, options := range []string{"cluster_size=4k", "cluster_size=64k", "extended_l2=on,cluster_size=64k"} {
		path := create(t, options, "1M")
		qemuIO(t, path, "write -P 7 0 512k")
		st, err := os.Stat(path)
		must(t, err)
		for _, cut := range []int64{1, 513, 100 * kib, 300 * kib} {
			must(t, os.Truncate(path, st.Size()-cut))
			asQEMU(t, path, openChain(t, path))
		}
	}
}

func TestRead_IgnoresReservedBitsAsQEMU(t *testing.T) {
	path := create(t, "cluster_size=64k", "1M")
	qemuIO(t, path, "write -P 7 64k 64k", "write -z 128k 64k", "write -P 9 192k 128k")
	h, err := readHeader(openFile(t, path))
	must(t, err)
	var l1 [8]byte
	_, err = openFile(t, path).ReadAt(l1[:], h.l1.off)
	must(t, err)
	l2 := int64(binary.BigEndian.Uint64(l1[:]) & entryOffset)
	patch(t, path, h.l1.off, be64(binary.BigEndian.Uint64(l1[:])|0x7f000000000001ff)...)
	var entries [5 * 8]byte
	_, err = openFile(t, path).ReadAt(entries[:], l2)
	must(t, err)
	for i := range 5 {
		patch(t, path, l2+int64(i)*8, be64(binary.BigEndian.Uint64(entries[8*i:])|0x3f000000000001fe)...)
	}
	asQEMU(t, path, openChain(t, path))
}

func TestSnapshots_AreAsQEMUHasThem(t *testing.T) {
	for options, cluster := range map[string]int64{"compat=0.10": 64 * kib, "cluster_size=512": 512, "extended_l2=on,cluster_size=16k": 16 * kib, "compression_type=zstd": 64 * kib} {
		t.Run(options, func(t *testing.T) {
			base := create(t, "", "2M")
			qemuIO(t, base, "write -P 99 0 2M")
			path := create(t, options, "1M", "-b", base, "-F", "qcow2")
			if list, err := New().Snapshots(openFile(t, path)); err != nil || len(list) != 0 {
				t.Errorf("of none: %v, %v", list, err)
			}
			v3 := !strings.Contains(options, "0.10")
			names := []string{"first", "with space,=\n\xff", "1", strings.Repeat("n", 255)} // "1" is the ID of the first
			sizes := map[string]int64{}
			for i, name := range names {
				doWork(t, path, workload(uint64(i), mib, cluster, 10, v3))
				command(t, "qemu-img", "snapshot", "-c", name, path)
				d := openChain(t, path)
				sizes[name] = d.Size()
				if v3 && i == 1 {
					command(t, "qemu-img", "resize", "-q", path, "1536k")
				}
			}
			doWork(t, path, workload(9, mib, cluster, 20, v3))
			command(t, "qemu-img", "check", "-q", path)
			command(t, "qemu-img", "snapshot", "-d", "first", path)
			asQEMU(t, path, openChain(t, path))

			list, err := New().Snapshots(openFile(t, path))
			must(t, err)
			var info struct {
				Snapshots []struct {
					ID          string
					Name        string
					VMStateSize int64 `json:"vm-state-size"`
					DateSec     int64 `json:"date-sec"`
					DateNsec    int64 `json:"date-nsec"`
					ClockSec    int64 `json:"vm-clock-sec"`
					ClockNsec   int64 `json:"vm-clock-nsec"`
				}
			}
			must(t, json.Unmarshal(command(t, "qemu-img", "info", "--output=json", path), &info))
			if len(list) != len(info.Snapshots) || len(list) != len(names)-1 {
				t.Fatalf("%d snapshots, qemu-img says %d", len(list), len(info.Snapshots))
			}
			for i, s := range list {
				want := info.Snapshots[i]
				if s.ID != want.ID || s.Name != names[i+1] || s.VMStateBytes != want.VMStateSize || s.VMClock != time.Duration(want.ClockSec)*time.Second+time.Duration(want.ClockNsec) ||
					!s.Created.Equal(time.Unix(want.DateSec, want.DateNsec)) || s.SizeBytes != sizes[s.Name] {
					t.Errorf("snapshot %d is %+v of %d bytes, qemu-img says %+v", i, s, sizes[s.Name], want)
				}
				raw := filepath.Join(t.TempDir(), "raw")
				command(t, "qemu-img", "convert", "-l", "snapshot.id="+s.ID, "-f", "qcow2", "-O", "raw", path, raw)
				must(t, os.Truncate(raw, s.SizeBytes)) // qemu-img gives it the size of today
				want2, err := os.ReadFile(raw)
				must(t, err)
				file := openFile(t, path)
				d, err := New().OpenSnapshot(file, openBacking(t, path, file), s.ID)
				must(t, err)
				sameBytes(t, want2, d)
				must(t, d.Close())
				file = openFile(t, path)
				d, err = New().OpenSnapshot(file, openBacking(t, path, file), s.Name)
				must(t, err)
				if s.Name != "1" {
					sameBytes(t, want2, d)
				}
				must(t, d.Close())
			}
			file := openFile(t, path)
			if _, err := New().OpenSnapshot(file, openBacking(t, path, file), "absent"); !errors.Is(err, backend.ErrNotExist) {
				t.Errorf("of an absent one: %v", err)
			}
		})
	}
}

func TestOpenSnapshot_PrefersTheID(t *testing.T) {
	path := create(t, "", "1M")
	qemuIO(t, path, "write -P 1 0 4k")
	command(t, "qemu-img", "snapshot", "-c", "2", path) // ID 1
	qemuIO(t, path, "write -P 2 0 4k")
	command(t, "qemu-img", "snapshot", "-c", "1", path) // ID 2
	for id, want := range map[string]byte{"1": 1, "2": 2} {
		d, err := New().OpenSnapshot(openFile(t, path), nil, id)
		must(t, err)
		b := make([]byte, 1)
		_, err = d.ReadAt(b, 0)
		must(t, err)
		if b[0] != want {
			t.Errorf("%s: %d, want %d", id, b[0], want)
		}
		must(t, d.Close())
	}
}

func TestHeader_IsAsQEMUHasIt(t *testing.T) {
	base := create(t, "", "1000000")
	path := create(t, "", "3M", "-b", base, "-F", "qcow2")
	for path, want := range map[string]backend.FormatHeader{
		base: {SizeBytes: 1000448},
		path: {SizeBytes: 3 * mib, Backing: base, BackingFormat: "qcow2"},
	} {
		file := openFile(t, path)
		got, err := New().Header(file)
		must(t, err)
		if got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
		if n := file.reads.Load(); n != 1 {
			t.Errorf("it took %d reads", n)
		}
	}
	name := strings.Repeat("d/", 511) + "b"
	command(t, "qemu-img", "rebase", "-u", "-b", name, "-F", "raw", path)
	if got, err := New().Header(openFile(t, path)); err != nil || got.Backing != name || got.BackingFormat != "raw" {
		t.Errorf("%+v, %v", got, err)
	}
}
