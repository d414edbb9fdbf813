package control

import (
	"errors"
	"math"
	"math/big"
	"strconv"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/fake"
)

func TestParseSize_ReadsWhatThePageSays(t *testing.T) {
	for _, c := range []struct {
		text  string
		delta bool
		want  int64
	}{
		{"0", false, 0}, {"1", false, 1}, {"4096", false, 4096}, {"007", false, 7}, {"10B", false, 10},
		{"1K", false, 1 << 10}, {"1k", false, 1 << 10}, {"1KB", false, 1 << 10}, {"1KiB", false, 1 << 10}, {"1kib", false, 1 << 10},
		{"20G", false, 20 << 30}, {"+10G", true, 10 << 30}, {"+0", true, 0}, {"+512M", true, 512 << 20},
		{"1.5G", false, 3 << 29}, {"0.5K", false, 512}, {"1.0M", false, 1 << 20}, {"2T", false, 2 << 40}, {"3P", false, 3 << 50},
		{"1.3G", false, 1395864372}, // 1395864371.2
		{"0.1K", false, 103},        // 102.4
		{"9223372036854775807", false, math.MaxInt64}, {"8191P", false, 8191 << 50},
		{"1.00000000000000000000000000001K", false, 1025},
	} {
		delta, n, err := ParseSize(c.text)
		if err != nil || delta != c.delta || n != c.want {
			t.Errorf("%q: %t %d %v; want %t %d", c.text, delta, n, err, c.delta, c.want)
		}
	}
	for _, text := range []string{"", "+", "-1", "-1G", "10X", "99999999999999999999", "1.5.2G", "1.5", "1.0", "1.5B", ".5G", "1.G", "1..5G", "G", "+G", "++1G", "1G+", " 1G", "1G ", "1 G", "1GG",
		"1GiBB", "1iB", "1Gi", "10E", "0x10", "1e3", "1_000", "١", "8192P", "9223372036854775808", "1G\n", "1,5G", "inf", "NaN", strings.Repeat("0", 65), strings.Repeat("9", 10000)} {
		if delta, n, err := ParseSize(text); !errors.Is(err, backend.ErrInvalid) {
			t.Errorf("%q: %t %d %v; want ErrInvalid", text, delta, n, err)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"", "-1", "10X", "99999999999999999999", "1.5.2G", "0", "+0", "20G", "+1.5TiB", "0.1k", "8191P", "1.", "B"} {
		f.Add(s)
	}
	units := "KMGTP"
	f.Fuzz(func(t *testing.T, text string) {
		delta, n, err := ParseSize(text)
		if err != nil {
			if !errors.Is(err, backend.ErrInvalid) || n != 0 || delta {
				t.Fatalf("%q: %t %d %v", text, delta, n, err)
			}
			return
		}
		// An oracle of its own: exact rationals.
		s := strings.TrimPrefix(text, "+")
		if delta != (s != text) || n < 0 {
			t.Fatalf("%q: %t %d", text, delta, n)
		}
		s = strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(s), "B"), "I")
		scale := big.NewRat(1, 1)
		if i := strings.IndexByte(units, s[len(s)-1]); i >= 0 {
			scale.SetInt(new(big.Int).Lsh(big.NewInt(1), uint(10*(i+1))))
			s = s[:len(s)-1]
		}
		r, ok := new(big.Rat).SetString(s)
		if !ok {
			t.Fatalf("%q is taken for %d", text, n)
		}
		r.Mul(r, scale)
		got := new(big.Rat).SetInt64(n)
		if got.Cmp(r) < 0 || got.Sub(got, r).Cmp(big.NewRat(1, 1)) >= 0 {
			t.Fatalf("%q is %s, not %d", text, r.FloatString(3), n)
		}
		if _, again, err := ParseSize(strconv.FormatInt(n, 10)); err != nil || again != n {
			t.Fatalf("%d is read as %d, %v", n, again, err)
		}
	})
}

func TestResize_Grows(t *testing.T) {
	b := newBench(t, setup{})
	const image = "/images/web01-xvda"
	b.must(b.Resize(t.Context(), "web01", "xvda", "2M"))
	if n := b.fake.Store.Size(image); n != 2<<20 {
		t.Errorf("size %d", n)
	}
	b.must(b.Resize(t.Context(), "web01", "xvda", "+1M"))
	d := b.inv().Domain("web01")
	if n := d.Volumes[d.Disk("xvda")].SizeBytes; n != 3<<20 {
		t.Errorf("size %d", n)
	}
	es := b.eventsOf("resize")
	if len(es) != 2 || es[1].Message != "3145728" || es[1].Disk != "xvda" {
		t.Errorf("events %+v", es)
	}
}

func TestResize_DoesNothingWhereTheTargetRoundsToThePresentSize(t *testing.T) {
	b := newBench(t, setup{})
	b.fake.Store.SetUnit(1 << 20)
	for _, v := range []string{"1M", "1048576", "+0", "1048575", "0.5M"} {
		b.must(b.Resize(t.Context(), "web01", "xvda", v))
	}
	if n := b.fake.Store.Calls("Resize"); n != 0 || len(b.eventsOf("resize")) != 0 {
		t.Errorf("resized %d times", n)
	}
	b.must(b.Resize(t.Context(), "web01", "xvda", "+1"))
	if n := b.fake.Store.Size("/images/web01-xvda"); n != 2<<20 {
		t.Errorf("size %d", n)
	}
}

func TestResize_TellsARunningDomain(t *testing.T) {
	b := newBench(t, setup{})
	b.fake.Hypervisor.Start("web01")
	b.must(b.Resize(t.Context(), "web01", "xvda", "2M"))
	if n := b.fake.Hypervisor.ToldSize("web01", "xvda"); n != 2<<20 {
		t.Errorf("told %d", n)
	}
}

func TestResize_SaysThatTheGuestWasNotTold(t *testing.T) {
	b := newBench(t, setup{})
	b.fake.Hypervisor.Start("web01")
	b.fake.Hypervisor.Fail("NotifySize", backend.ErrIO)
	b.mustFail(b.Resize(t.Context(), "web01", "xvda", "2M"), backend.ErrIO, "has 2097152 bytes now")
}

func TestResize_Refuses(t *testing.T) {
	start := func(b *bench) { b.fake.Hypervisor.Start("web01") }
	mode := func(f func(k *backend.Disk)) func(*bench) {
		return func(b *bench) { b.fake.Hypervisor.Change("web01", func(d *backend.Domain) { f(&d.Disks[0]) }) }
	}
	none := func(*bench) {}
	for _, c := range []struct {
		name, domain, vdev, value string
		caps                      fake.Caps
		make                      func(b *bench)
		want                      error
		words                     []string
	}{
		{"shrink", "web01", "xvda", "1000", 0, none, backend.ErrPermission, []string{"1048576", "1000"}},
		{"zero", "web01", "xvda", "0", 0, none, backend.ErrPermission, nil},
		{"no size", "web01", "xvda", "10X", 0, none, backend.ErrInvalid, []string{"10X"}},
		{"overflow", "web01", "xvda", "+9223372036854775807", 0, none, backend.ErrInvalid, nil},
		{"no room", "web01", "xvda", "4M", 0, func(b *bench) { b.fake.Store.SetCapacity(4 << 20) }, backend.ErrNoSpace, nil},
		{"unknown domain", "web02", "xvda", "4M", 0, none, backend.ErrNotExist, nil},
		{"unknown disk", "web01", "xvdz", "4M", 0, none, backend.ErrNotExist, nil},
		{"read-only", "web01", "xvda", "4M", 0, mode(func(k *backend.Disk) { k.Mode = backend.ReadOnly }), backend.ErrReadOnly, nil},
		{"cdrom", "web01", "xvda", "4M", 0, mode(func(k *backend.Disk) { k.CDROM = true }), backend.ErrReadOnly, nil},
		{"no resizer", "web01", "xvda", "4M", fake.Snapshot, none, backend.ErrUnsupported, []string{"fakestore"}},
		{"running, no notifier", "web01", "xvda", "4M", fake.Resize, start, backend.ErrUnsupported, []string{"shut web01 down first"}},
		{"held", "web01", "xvda", "4M", 0, func(b *bench) { b.fake.Store.Hold("/images/web01-xvda", "qemu (pid 9)") }, backend.ErrUnsupported, []string{"qemu (pid 9)", "shut web01 down first"}},
		{"missing", "web01", "xvda", "4M", 0, func(b *bench) { b.fake.Store.Break("/images/web01-xvda", backend.ErrNotExist) }, backend.ErrNotExist, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, setup{caps: c.caps})
			c.make(b)
			b.mustFail(b.Resize(t.Context(), c.domain, c.vdev, c.value), c.want, c.words...)
			b.lastErrorHas(c.domain, " resize "+errnoName(c.want)+" ")
			if n := b.fake.Store.Size("/images/web01-xvda"); n != 1<<20 {
				t.Errorf("the volume has %d bytes now", n)
			}
		})
	}
}

func TestResize_LeavesADiskAloneThatIsBeingCopied(t *testing.T) {
	b, release := copying(t, setup{}, true)
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	b.mustFail(b.Resize(t.Context(), "web01", "xvda", "2M"), backend.ErrBusy, "s of web01")
	release()
	eventually(t, "copied", func() bool { return b.set("web01", "s").State == backend.SnapshotActive })
	b.must(b.Resize(t.Context(), "web01", "xvda", "2M"))
}

func TestResize_ComputesADifferenceOnce(t *testing.T) {
	b := newBench(t, setup{})
	errs := make(chan error)
	for range 8 {
		go func() { errs <- b.Resize(t.Context(), "web01", "xvda", "+1M") }()
	}
	for range 8 {
		b.must(<-errs)
	}
	if n := b.fake.Store.Size("/images/web01-xvda"); n != 9<<20 {
		t.Errorf("%d bytes", n)
	}
}
