package part_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest"
	"domfs/backend/guest/part"
)

// row is what a table says of one partition, in sectors of 512 bytes.
type row struct {
	Number         int
	Start, Sectors int64
	UUID, Type     string
	Label          string
}

// located is a Device whose parts say where they are.
type located struct{ backend.Device }

func (d located) Locate(off, length int64) (backend.Location, bool) {
	return backend.Location{Offset: off, Length: length}, true
}

func rows(t testing.TB, path string) []row {
	t.Helper()
	parts, err := part.New().Parts(located{openImage(t, path)})
	if err != nil {
		t.Fatalf("Parts: %v", err)
	}
	var out []row
	for _, p := range parts {
		r := row{Number: p.Number, UUID: p.UUID, Type: p.Type, Label: p.Label, Start: -1, Sectors: -1}
		if p.Err == nil {
			at, _ := p.Device.(backend.Locator).Locate(0, 1)
			r.Start, r.Sectors = at.Offset/512, p.Device.Size()/512
		}
		out = append(out, r)
	}
	return out
}

var hexEscape = regexp.MustCompile(`\\x[0-9a-f]{2}`)

// partxRows asks libblkid, which numbers partitions as the kernel does.
func partxRows(t testing.TB, path string) []row {
	t.Helper()
	var out []row
	for line := range strings.Lines(run(t, "", "partx", "--raw", "--noheadings", "-o", "NR,START,SECTORS,UUID,TYPE,NAME", path)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), " ")
		if len(f) < 6 {
			t.Fatalf("partx: %q", line)
		}
		n, _ := strconv.Atoi(f[0])
		start, _ := strconv.ParseInt(f[1], 10, 64)
		sectors, _ := strconv.ParseInt(f[2], 10, 64)
		r := row{Number: n, Start: start, Sectors: sectors, UUID: f[3], Type: f[4], Label: hexEscape.ReplaceAllStringFunc(f[5], func(s string) string {
			c, _ := strconv.ParseUint(s[2:], 16, 8)
			return string([]byte{byte(c)})
		})}
		if slices.Contains([]string{"0x5", "0xf", "0x85"}, r.Type) {
			r.Sectors = min(2, r.Sectors) // as the kernel shows it
		}
		out = append(out, r)
	}
	return out
}

// sfdiskRows asks sfdisk, who reads tables with libfdisk.
func sfdiskRows(t testing.TB, path string) []row {
	t.Helper()
	var doc struct {
		PartitionTable struct {
			Label      string
			SectorSize int64
			Partitions []struct {
				Node, Type, UUID, Name string
				Start, Size            int64
			}
		}
	}
	if err := json.Unmarshal([]byte(run(t, "", "sfdisk", "--json", path)), &doc); err != nil {
		t.Fatal(err)
	}
	table := doc.PartitionTable
	factor := table.SectorSize / 512
	var out []row
	for _, p := range table.Partitions {
		n, _ := strconv.Atoi(p.Node[strings.LastIndexFunc(p.Node, func(r rune) bool { return r < '0' || r > '9' })+1:])
		r := row{Number: n, Start: p.Start * factor, Sectors: p.Size * factor, Type: strings.ToLower(p.Type), UUID: strings.ToLower(p.UUID), Label: p.Name}
		if table.Label == "dos" {
			r.Type = "0x" + r.Type
			if slices.Contains([]string{"0x5", "0xf", "0x85"}, r.Type) {
				r.Sectors = 2
			}
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b row) int { return a.Number - b.Number })
	return out
}

// kernelRows asks the kernel, if it reads partition tables at all.
func kernelRows(t testing.TB, path, sector string) []row {
	t.Helper()
	dev := filepath.Base(loop(t, path, sector, "-P"))
	deadline := time.Now().Add(2 * time.Second)
	for {
		found, _ := filepath.Glob("/sys/block/" + dev + "/" + dev + "p*")
		if len(found) == 0 && time.Now().Before(deadline) {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		var out []row
		for _, dir := range found {
			number := func(name string) int64 {
				b, err := os.ReadFile(filepath.Join(dir, name))
				if err != nil {
					t.Fatal(err)
				}
				n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
				return n
			}
			out = append(out, row{Number: int(number("partition")), Start: number("start"), Sectors: number("size")})
		}
		slices.SortFunc(out, func(a, b row) int { return a.Number - b.Number })
		return out
	}
}

// tables are intact tables.
var tables = []struct {
	name   string
	size   int64
	sector string
	build  func(t testing.TB, path string)
}{
	{"dos, four primary", 8 * mib, "512", script("label: dos\nlabel-id: 0x0badcafe\n,1M\n,1M,c\n,1M,82,*\n,,8e\n")},
	{"dos, a gap between primary", 8 * mib, "512", script("label: dos\nlabel-id: 0x0badcafe\n2: start=4096,size=2048\n4: start=8192,size=100\n")},
	{"dos, logical with gaps", 16 * mib, "512", script("label: dos\nlabel-id: 0x0badcafe\n1: start=2048,size=2048\n2: start=4096,size=24576,type=5\n" +
		"5: start=6144,size=2048\n6: start=12288,size=2048\n7: start=20480,size=1000\n")},
	{"dos, extended first and LBA", 16 * mib, "512", script("label: dos\n1: start=4096,size=24576,type=f\n3: start=2048,size=2048\n5: start=6144,size=2048\n")},
	{"dos, many logical", 16 * mib, "512", func(t testing.TB, path string) {
		s := "label: dos\n1: start=64,type=5\n"
		for i := range 50 {
			s += fmt.Sprintf("%d: start=%d,size=100\n", 5+i, 128+i*256)
		}
		sfdisk(t, path, s)
	}},
	{"dos, deleted logical", 16 * mib, "512", func(t testing.TB, path string) {
		sfdisk(t, path, "label: dos\n1: start=2048,type=5\n5: start=4096,size=2048\n6: start=8192,size=2048\n7: start=12288,size=2048\n")
		run(t, "", "sfdisk", "-q", "--delete", path, "6")
	}},
	{"dos, first logical deleted", 16 * mib, "512", func(t testing.TB, path string) {
		sfdisk(t, path, "label: dos\n1: start=2048,type=5\n5: start=4096,size=2048\n6: start=8192,size=2048\n")
		run(t, "", "sfdisk", "-q", "--delete", path, "5")
	}},
	{"dos, extended without logical", 8 * mib, "512", script("label: dos\n2: start=2048,type=5\n")},
	{"dos, without partitions", 8 * mib, "512", script("label: dos\n")},
	{"gpt", 8 * mib, "512", script("label: gpt\n,1M,U,,\n,2M,L\n,,S\n")},
	{"gpt, names", 8 * mib, "512", script("label: gpt\nlabel-id: " + guid + "\nsize=1M,name=\"EFI System\",uuid=" + guid + "\nsize=1M,name=\"ünï 二\"\n")},
	{"gpt, sparse numbers", 8 * mib, "512", script("label: gpt\n3: start=2048,size=10\n17: start=4096,size=20\n128: start=6144,size=30\n")},
	{"gpt, 128 in other order", 8 * mib, "512", func(t testing.TB, path string) {
		s := "label: gpt\n"
		for i := range 128 {
			s += fmt.Sprintf("%d: start=%d,size=8\n", i+1, 2048+(127-i)*16)
		}
		sfdisk(t, path, s)
	}},
	{"gpt, hybrid MBR", 8 * mib, "512", func(t testing.TB, path string) {
		sfdisk(t, path, "label: gpt\n,1M\n,1M\n,1M\n")
		run(t, "", "sgdisk", "-h", "1:3", path)
	}},
	{"gpt, 256 entries by sgdisk", 8 * mib, "512", func(t testing.TB, path string) {
		run(t, "", "sgdisk", "-S", "256", "-n", "1:2048:4095", "-n", "200:4096:+1M", "-c", "200:two hundred", path)
	}},
	{"gpt, 4096-byte sectors", 32 * mib, "4096", func(t testing.TB, path string) {
		sfdisk(t, loop(t, path, "4096"), "label: gpt\nsize=4M,name=four\n5: size=8M\n")
	}},
}

func script(s string) func(testing.TB, string) {
	return func(t testing.TB, path string) {
		t.Helper()
		sfdisk(t, path, s)
	}
}

func TestParts_AgreesWithLibblkidAndSfdisk(t *testing.T) {
	for _, c := range tables {
		t.Run(c.name, func(t *testing.T) {
			path := newImage(t, c.size)
			c.build(t, path)
			got := rows(t, path)
			asked := path
			if c.sector != "512" {
				asked = loop(t, path, c.sector)
			}
			if want := partxRows(t, asked); !slices.Equal(got, want) {
				t.Errorf("got  %v\npartx %v", got, want)
			}
			want := sfdiskRows(t, asked)
			same := slices.EqualFunc(got, want, func(g, w row) bool {
				if w.UUID == "" { // sfdisk has none for an MBR
					g.UUID = ""
				}
				return g == w
			})
			if !same {
				t.Errorf("got   %v\nsfdisk %v", got, want)
			}
		})
	}
}

func TestParts_AgreesWithTheKernel(t *testing.T) {
	probe := newImage(t, 8*mib)
	sfdisk(t, probe, "label: dos\n,1M\n")
	if len(kernelRows(t, probe, "512")) == 0 {
		t.Skip("this kernel reads no partition tables (CONFIG_MSDOS_PARTITION, CONFIG_EFI_PARTITION), which no package can change")
	}
	for _, c := range tables {
		t.Run(c.name, func(t *testing.T) {
			path := newImage(t, c.size)
			c.build(t, path)
			got := rows(t, path)
			for i := range got {
				got[i] = row{Number: got[i].Number, Start: got[i].Start, Sectors: got[i].Sectors}
			}
			if want := kernelRows(t, path, c.sector); !slices.Equal(got, want) {
				t.Errorf("got   %v\nkernel %v", got, want)
			}
		})
	}
}

func TestParts_KeepsTheContract(t *testing.T) {
	for _, c := range tables {
		if strings.Contains(c.name, "without") {
			continue // the contract wants a readable part
		}
		t.Run(c.name, func(t *testing.T) {
			path := newImage(t, c.size)
			c.build(t, path)
			backendtest.Layout(t, part.New(), openImage(t, path))
		})
	}
}

// damagedGPT is a table of two partitions on 8 MiB.
func damagedGPT(t testing.TB, change func(b []byte)) string {
	t.Helper()
	path := newImage(t, 8*mib)
	sfdisk(t, path, "label: gpt\nlabel-id: "+guid+"\nstart=2048,size=2048,name=one,uuid="+guid+"\nstart=8192,size=2048,name=two,uuid="+guid2+"\n")
	edit(t, path, change)
	return path
}

func TestParts_UsesTheBackupGPT(t *testing.T) {
	intact := rows(t, damagedGPT(t, func([]byte) {}))
	if len(intact) != 2 {
		t.Fatalf("intact: %v", intact)
	}
	for name, change := range map[string]func(b []byte){
		"primary header zeroed":      func(b []byte) { clear(b[512:1024]) },
		"primary header checksum":    func(b []byte) { b[512+56]++ },
		"primary header misplaced":   func(b []byte) { b[512+24] = 9; resum(b[512:1024]) },
		"primary header size":        func(b []byte) { le.PutUint32(b[512+12:], 4096) },
		"primary header tiny":        func(b []byte) { le.PutUint32(b[512+12:], 8) },
		"primary entries":            func(b []byte) { b[1024+32]++ },
		"primary too many entries":   func(b []byte) { le.PutUint32(b[512+80:], 1<<31); resum(b[512:1024]) },
		"primary huge entries":       func(b []byte) { le.PutUint32(b[512+84:], 1<<31); resum(b[512:1024]) },
		"primary entries far away":   func(b []byte) { le.PutUint64(b[512+72:], 1<<62); resum(b[512:1024]) },
		"backup header":              func(b []byte) { clear(b[8*mib-512:]) },
		"backup entries":             func(b []byte) { b[8*mib-33*512+32]++ },
		"hybrid and primary damaged": func(b []byte) { mbrEntry(b, 1, 0x83, 2048, 2048); b[512+56]++ },
	} {
		t.Run(name, func(t *testing.T) {
			path := damagedGPT(t, change)
			if got := rows(t, path); !slices.Equal(got, intact) {
				t.Errorf("got %v, want %v", got, intact)
			}
		})
	}
	t.Run("the disk has grown", func(t *testing.T) {
		path := damagedGPT(t, func(b []byte) { b[1024+32]++ })
		if err := os.Truncate(path, 12*mib); err != nil {
			t.Fatal(err)
		}
		if got := rows(t, path); !slices.Equal(got, intact) {
			t.Errorf("got %v, want %v", got, intact)
		}
	})
	t.Run("4096-byte sectors", func(t *testing.T) {
		path := newImage(t, 32*mib)
		sfdisk(t, loop(t, path, "4096"), "label: gpt\nsize=4M,name=four\n5: size=8M\n")
		want := rows(t, path)
		edit(t, path, func(b []byte) { b[4096+60]++ })
		if got := rows(t, path); len(got) != 2 || !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

func TestParts_SaysWhatIsWrongWithBothGPTs(t *testing.T) {
	for name, c := range map[string]struct {
		change func(b []byte)
		says   []string
	}{
		"both zeroed": {func(b []byte) { clear(b[512:1024]); clear(b[8*mib-512:]) },
			[]string{"primary", "byte 512", "backup", "byte 8388096", "no GPT header"}},
		"checksum and entries": {func(b []byte) { b[512+60]++; b[8*mib-33*512+32]++ },
			[]string{"primary", "its checksum is", "backup", "checksum of its entries"}},
		"lost and misplaced": {func(b []byte) { b[8*mib-512+24]++; resum(b[8*mib-512:]); clear(b[512:1024]) },
			[]string{"no GPT header", "belongs in sector"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := part.New().Parts(openImage(t, damagedGPT(t, c.change)))
			if !errors.Is(err, backend.ErrCorrupt) {
				t.Fatalf("Parts: %v, want ErrCorrupt", err)
			}
			for _, s := range c.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q does not say %q", err, s)
				}
			}
		})
	}
}

func TestParts_ShowsWhatATruncatedDiskStillHas(t *testing.T) {
	build := map[string]func(t *testing.T) string{
		"gpt": func(t *testing.T) string { return damagedGPT(t, func([]byte) {}) },
		"dos": func(t *testing.T) string {
			path := newImage(t, 8*mib)
			sfdisk(t, path, "label: dos\nstart=2048,size=2048\nstart=8192,size=2048\n")
			return path
		},
	}
	for name, build := range build {
		for what, size := range map[string]int64{"behind the second": 5 * mib, "within the second": 9000 * 512, "before the second": 3 * mib} {
			t.Run(name+" "+what, func(t *testing.T) {
				path := build(t)
				if err := os.Truncate(path, size); err != nil {
					t.Fatal(err)
				}
				parts, err := part.New().Parts(openImage(t, path))
				if err != nil || len(parts) != 2 {
					t.Fatalf("Parts: %v, %v", parts, err)
				}
				if parts[0].Err != nil || parts[0].Device.Size() != 1*mib {
					t.Errorf("first: %+v", parts[0])
				}
				if broken := parts[1].Err != nil; broken != (size < 5*mib) {
					t.Errorf("second: %+v", parts[1])
				}
				if parts[1].Err != nil && (!errors.Is(parts[1].Err, backend.ErrCorrupt) || !strings.Contains(parts[1].Err.Error(), "truncated")) {
					t.Errorf("second: %v", parts[1].Err)
				}
			})
		}
	}
}

// chain makes a disk of 8 MiB with an extended partition from sector 100 on, and
// extended boot records there.
func chain(t testing.TB, records map[int]func(sector []byte)) string {
	t.Helper()
	path := newImage(t, 8*mib)
	edit(t, path, func(b []byte) {
		le.PutUint32(b[440:], 0xcafe)
		mbrEntry(b, 1, 5, 100, 10000)
		for at, fill := range records {
			fill(b[at*512:][:512])
		}
	})
	return path
}

func TestParts_FollowsTheChainOfLogicalPartitions(t *testing.T) {
	stub := row{2, 100, 2, "0000cafe-02", "0x5", ""}
	logical := func(n int, start int64) row {
		return row{n, start, 10, fmt.Sprintf("0000cafe-%02x", n), "0x83", ""}
	}
	for name, c := range map[string]struct {
		records map[int]func([]byte)
		want    []row
	}{
		"records without a partition have no number": {map[int]func([]byte){
			100: func(b []byte) { mbrEntry(b, 1, 5, 100, 100) },
			200: func(b []byte) { mbrEntry(b, 0, 0x83, 2, 10); mbrEntry(b, 1, 0xf, 200, 100) },
			300: func(b []byte) { mbrEntry(b, 1, 0x85, 300, 100) },
			400: func(b []byte) { mbrEntry(b, 0, 0x83, 2, 10) },
		}, []row{stub, logical(5, 202), logical(6, 402)}},
		"the link may come first": {map[int]func([]byte){
			100: func(b []byte) { mbrEntry(b, 0, 5, 100, 100); mbrEntry(b, 1, 0x83, 2, 10) },
			200: func(b []byte) { mbrEntry(b, 0, 0x83, 2, 10) },
		}, []row{stub, logical(5, 102), logical(6, 202)}},
		"all four entries count if they make sense": {map[int]func([]byte){
			100: func(b []byte) {
				mbrEntry(b, 0, 0x83, 2, 10)
				mbrEntry(b, 2, 0x83, 20, 10)
				mbrEntry(b, 3, 0x83, 20000, 10)
			},
		}, []row{stub, logical(5, 102), logical(6, 120)}},
		"a loop ends": {map[int]func([]byte){
			100: func(b []byte) { mbrEntry(b, 0, 0x83, 2, 10); mbrEntry(b, 1, 5, 100, 100) },
			200: func(b []byte) { mbrEntry(b, 0, 0x83, 2, 10); mbrEntry(b, 1, 5, 0, 100) },
		}, []row{stub, logical(5, 102), logical(6, 202)}},
		"a loop of empty records ends": {map[int]func([]byte){
			100: func(b []byte) { mbrEntry(b, 1, 5, 0, 100) },
		}, []row{stub}},
		"a link off the disk ends the chain": {map[int]func([]byte){
			100: func(b []byte) { mbrEntry(b, 0, 0x83, 2, 10); mbrEntry(b, 1, 5, 1<<31, 100) },
		}, []row{stub, logical(5, 102)}},
		"a record without signature ends the chain": {map[int]func([]byte){
			100: func(b []byte) { mbrEntry(b, 0, 0x83, 2, 10); mbrEntry(b, 1, 5, 100, 100) },
			200: func(b []byte) { mbrEntry(b, 0, 0x83, 2, 10); b[510] = 0 },
		}, []row{stub, logical(5, 102)}},
		"a link outside of the extended partition is followed": {map[int]func([]byte){
			100:   func(b []byte) { mbrEntry(b, 1, 5, 11000, 100) },
			11100: func(b []byte) { mbrEntry(b, 0, 0x83, 2, 10) },
		}, []row{stub, logical(5, 11102)}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := rows(t, chain(t, c.records)); !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestParts_BoundsALongChain(t *testing.T) {
	path := chain(t, nil)
	edit(t, path, func(b []byte) {
		for i := range uint32(5000) {
			sector := b[(100+i)*512:][:512]
			mbrEntry(sector, 0, 0x83, 1, 1)
			mbrEntry(sector, 1, 5, i+1, 1)
		}
	})
	got := rows(t, path)
	if last := got[len(got)-1].Number; last != 255 || len(got) != 252 {
		t.Errorf("%d partitions, the last is %d; want 2 and 5 to 255", len(got), last)
	}
}

func TestParts_RefusesWhatIsNoTable(t *testing.T) {
	for name, b := range map[string][]byte{
		"zero":      make([]byte, 4096),
		"empty":     {},
		"short":     make([]byte, 511),
		"boot flag": func() []byte { b := make([]byte, 4096); mbrEntry(b, 0, 0x83, 1, 1); b[446] = 0x42; return b }(),
	} {
		t.Run(name, func(t *testing.T) {
			path := newImage(t, 0)
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if parts, err := part.New().Parts(openImage(t, path)); !errors.Is(err, backend.ErrCorrupt) {
				t.Errorf("Parts = %v, %v; want ErrCorrupt", parts, err)
			}
		})
	}
}

func TestTypes_AreBlkidsWords(t *testing.T) {
	if got := part.New().Types(); !reflect.DeepEqual(got, []string{"gpt", "dos", "PMBR"}) {
		t.Errorf("Types() = %q", got)
	}
}
