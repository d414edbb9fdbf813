package lru

import (
	"errors"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

var errRead = errors.New("the disk is damaged")

// valued is a read of a value of so many bytes.
func valued(value, bytes int) func() (int, int, error) {
	return func() (int, int, error) { return value, bytes, nil }
}

// unread is for what has to be there.
func unread(t *testing.T) func() (int, int, error) {
	return func() (int, int, error) {
		t.Error("it is read")
		return 0, 0, nil
	}
}

// load loads values that are their keys.
func load(t *testing.T, c *Cache[int, int], bytes int, keys ...int) {
	t.Helper()
	for _, key := range keys {
		if v, err := c.Load(key, valued(key, bytes)); v != key || err != nil {
			t.Fatalf("key %d: %d, %v", key, v, err)
		}
	}
}

// held are the keys that are held, in ascending order.
func held(c *Cache[int, int]) []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.entries))
}

// fitting is a cache in which so many values of 100 bytes have room.
func fitting(n int) *Cache[int, int] { return New[int, int](n * (100 + overhead[int, int]())) }

func TestCache_DropsWhatWasUsedLongestAgo(t *testing.T) {
	c := fitting(3)
	for _, step := range []struct {
		name string
		do   func()
		want []int
	}{
		{"three have room", func() { load(t, c, 100, 1, 2, 3) }, []int{1, 2, 3}},
		{"the first goes first", func() { load(t, c, 100, 4) }, []int{2, 3, 4}},
		{"Lookup is a use", func() { c.Lookup(2); load(t, c, 100, 5) }, []int{2, 4, 5}},
		{"Load is a use", func() { c.Load(4, unread(t)); load(t, c, 100, 6) }, []int{4, 5, 6}},
		{"so it is of the one used last", func() { c.Lookup(6); c.Lookup(4); c.Lookup(6); load(t, c, 100, 7, 8) }, []int{6, 7, 8}},
		{"a miss is none", func() { c.Lookup(1) }, []int{6, 7, 8}},
		{"a large one takes the room of several", func() { load(t, c, 250, 9) }, []int{8, 9}},
		{"one larger than all changes nothing", func() { load(t, c, 1<<20, 10); c.Load(11, valued(11, int(^uint(0)>>1))) }, []int{8, 9}},
		{"as large as all takes it", func() { load(t, c, 3*100+2*overhead[int, int](), 12) }, []int{12}},
		{"a byte more does not", func() { load(t, c, 3*100+2*overhead[int, int]()+1, 13) }, []int{12}},
	} {
		if step.do(); !slices.Equal(held(c), step.want) {
			t.Errorf("%s: %v are held, want %v", step.name, held(c), step.want)
		}
	}
	for _, key := range []int{8, 9, 10, 11, 13} {
		if v, ok := c.Lookup(key); ok || v != 0 {
			t.Errorf("key %d is said to be there: %d", key, v)
		}
	}
	if v, ok := c.Lookup(12); !ok || v != 12 {
		t.Errorf("key 12: %d, %v", v, ok)
	}
}

func TestBytes_NeverExceedTheBound(t *testing.T) {
	const most = 20_000
	for _, room := range []int{0, 1, most} {
		c := New[int, int](room)
		r := rand.New(rand.NewPCG(1, 1))
		sizes := map[int]int{}
		for range 5000 {
			key := r.IntN(200)
			switch r.IntN(10) {
			case 0:
				n := r.IntN(200)
				c.Forget(func(key int) bool { return key == n })
			case 1, 2:
				c.Lookup(key)
			default:
				c.Load(key, func() (int, int, error) {
					sizes[key] = r.IntN(3000)
					return key, sizes[key], nil
				})
			}
			sum := 0
			for _, key := range held(c) {
				sum += sizes[key] + overhead[int, int]()
			}
			if got := c.Bytes(); got != sum || got > room {
				t.Fatalf("%d bytes, where %d are held and %d at most", got, sum, room)
			}
		}
		c.Forget(func(int) bool { return true })
		if n := c.Bytes(); n != 0 || len(c.entries) != 0 || len(c.flights) != 0 {
			t.Errorf("%d bytes, %d entries and %d reads are left", n, len(c.entries), len(c.flights))
		}
	}
}

func TestLoad_ReadsOnceForAllWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := fitting(1)
		reads := 0
		proceed := make(chan struct{})
		for range 5 {
			go func() {
				v, err := c.Load(1, func() (int, int, error) {
					reads++
					<-proceed
					return 7, 100, nil
				})
				if v != 7 || err != nil {
					t.Errorf("Load: %d, %v", v, err)
				}
			}()
		}
		synctest.Wait()
		for range 5 {
			go func() {
				if v, ok := c.Lookup(1); v != 7 || !ok {
					t.Errorf("Lookup: %d, %v", v, ok)
				}
			}()
		}
		synctest.Wait()
		// Nobody waits for what is read for others.
		load(t, c, 1<<20, 2)
		if _, ok := c.Lookup(2); ok || c.Bytes() != 0 {
			t.Error("something is held already")
		}
		close(proceed)
		synctest.Wait()
		if reads != 1 {
			t.Errorf("%d reads", reads)
		}
		if v, err := c.Load(1, unread(t)); v != 7 || err != nil {
			t.Errorf("afterwards: %d, %v", v, err)
		}
	})
}

func TestLoad_DoesNotKeepAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := fitting(1)
		reads := 0
		proceed := make(chan struct{})
		fail := func() (int, int, error) {
			reads++
			<-proceed
			return 7, 100, errRead
		}
		for range 3 {
			go func() {
				if v, err := c.Load(1, fail); v != 0 || !errors.Is(err, errRead) {
					t.Errorf("Load: %d, %v", v, err)
				}
			}()
		}
		synctest.Wait()
		go func() {
			if v, ok := c.Lookup(1); v != 0 || ok {
				t.Errorf("Lookup: %d, %v", v, ok)
			}
		}()
		synctest.Wait()
		close(proceed)
		synctest.Wait()
		if _, ok := c.Lookup(1); reads != 1 || ok || c.Bytes() != 0 {
			t.Errorf("after %d reads it is there: %v, %d bytes", reads, ok, c.Bytes())
		}
		load(t, c, 100, 1)
	})
}

func TestLoad_FailsForThoseWhoWaitWhereItsReaderPanics(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic("hostile bytes") }, "Goexit": runtime.Goexit} {
		synctest.Test(t, func(t *testing.T) {
			c := fitting(1)
			proceed := make(chan struct{})
			go func() {
				defer func() {
					if p := recover(); name == "panic" && p != "hostile bytes" {
						t.Errorf("it panicked with %v", p)
					}
				}()
				c.Load(1, func() (int, int, error) {
					<-proceed
					end()
					return 7, 100, nil
				})
				t.Errorf("%s: Load returned", name)
			}()
			synctest.Wait()
			go func() {
				if v, err := c.Load(1, unread(t)); v != 0 || !errors.Is(err, errPanicked) {
					t.Errorf("%s: Load: %d, %v", name, v, err)
				}
			}()
			go func() {
				if v, ok := c.Lookup(1); v != 0 || ok {
					t.Errorf("%s: Lookup: %d, %v", name, v, ok)
				}
			}()
			synctest.Wait()
			close(proceed)
			synctest.Wait()
			if n := c.Bytes(); n != 0 {
				t.Errorf("%s: %d bytes are held", name, n)
			}
			load(t, c, 100, 1)
		})
	}
}

func TestForget_DropsTheKeysItIsToldAndNoOthers(t *testing.T) {
	c := fitting(6)
	load(t, c, 100, 1, 2, 3, 4, 5, 6)
	c.Forget(func(key int) bool { return key%2 == 0 || key == 1 })
	if got, want := held(c), []int{3, 5}; !slices.Equal(got, want) || c.Bytes() != 2*(100+overhead[int, int]()) {
		t.Errorf("%v are held in %d bytes, want %v", got, c.Bytes(), want)
	}
	// Their order is what it was.
	load(t, c, 100, 11, 12, 13, 14, 15)
	if got, want := held(c), []int{5, 11, 12, 13, 14, 15}; !slices.Equal(got, want) {
		t.Errorf("%v are held, want %v", got, want)
	}
}

// What was read before Forget is for those who asked before it.
func TestForget_HoldsNothingOfWhatIsBeingRead(t *testing.T) {
	for _, again := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			c := fitting(2)
			before, after := make(chan struct{}), make(chan struct{})
			reader := func(want int, proceed chan struct{}) {
				v, err := c.Load(1, func() (int, int, error) {
					<-proceed
					return want, 100, nil
				})
				if v != want || err != nil {
					t.Errorf("Load: %d, %v, want %d", v, err, want)
				}
			}
			waiter := func(want int) {
				if v, ok := c.Lookup(1); v != want || !ok {
					t.Errorf("Lookup: %d, %v, want %d", v, ok, want)
				}
			}
			go reader(7, before)
			go func() { // another key goes on
				c.Load(2, func() (int, int, error) {
					<-before
					return 2, 100, nil
				})
			}()
			synctest.Wait()
			go waiter(7)
			synctest.Wait()
			c.Forget(func(key int) bool { return key == 1 })
			if v, ok := c.Lookup(1); ok {
				t.Errorf("it is there after Forget: %d", v)
			}
			if again {
				go reader(8, after)
				synctest.Wait()
				go waiter(8)
				synctest.Wait()
			}
			close(before)
			synctest.Wait()
			want := []int{2}
			if got := held(c); !slices.Equal(got, want) {
				t.Errorf("%v are held, want %v", got, want)
			}
			close(after)
			synctest.Wait()
			if again {
				want = []int{1, 2}
			}
			if got := held(c); !slices.Equal(got, want) {
				t.Errorf("in the end %v are held, want %v", got, want)
			}
			if v, ok := c.Lookup(1); ok != again || again && v != 8 {
				t.Errorf("in the end: %d, %v", v, ok)
			}
		})
	}
}

func TestCache_IsUsedByManyAtOnce(t *testing.T) {
	c := fitting(10)
	var w sync.WaitGroup
	const forgotten = 20 // the keys from it on, which are then read by two
	var reading [2 * forgotten]atomic.Int32
	for i := range 8 {
		w.Go(func() {
			r := rand.New(rand.NewPCG(2, uint64(i)))
			for range 3000 {
				key := r.IntN(len(reading))
				fails := r.IntN(10) == 0
				if v, ok := c.Lookup(key); ok && v != key {
					t.Errorf("key %d: %d", key, v)
				}
				v, err := c.Load(key, func() (int, int, error) {
					if reading[key].Add(1) != 1 && key < forgotten {
						t.Errorf("key %d is read by two", key)
					}
					defer reading[key].Add(-1)
					runtime.Gosched()
					if fails {
						return -1, 100, errRead
					}
					return key, 100, nil
				})
				if err == nil && v != key || err != nil && !errors.Is(err, errRead) {
					t.Errorf("key %d: %d, %v", key, v, err)
				}
				if n := c.Bytes(); n > c.max {
					t.Errorf("%d bytes of %d are held", n, c.max)
				}
				if r.IntN(100) == 0 {
					c.Forget(func(key int) bool { return key >= forgotten })
				}
			}
		})
	}
	w.Wait()
	if n := len(c.flights); n != 0 {
		t.Errorf("%d reads are left", n)
	}
}

// pair is a key like those of the drivers.
type pair struct {
	image, at uint64
	kind      uint8
}

// What is accounted is what the heap has to have once many entries have come and gone, and it never has more.
func TestOverhead_IsWhatAnEntryTakes(t *testing.T) {
	t.Run("words", func(t *testing.T) { testOverhead[uint64, *int](t, func(n uint64) uint64 { return n }) })
	t.Run("pairs", func(t *testing.T) {
		testOverhead[pair, *int](t, func(n uint64) pair { return pair{n % 3, n, 1} })
	})
	t.Run("two words of slices", func(t *testing.T) {
		testOverhead[[2]uint64, []byte](t, func(n uint64) [2]uint64 { return [2]uint64{n % 3, n} })
	})
}

func testOverhead[K comparable, V any](t *testing.T, key func(uint64) K) {
	heap := func() int {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	before := heap()
	c := New[K, V](6600 * overhead[K, V]()) // of so many, the map takes the most each: it grows by doubling
	var none V
	var takes, most float64 // of what is accounted
	for n := range uint64(300_000) {
		c.Load(key(n), func() (V, int, error) { return none, 0, nil })
		if n%10_000 == 9999 {
			takes = float64(heap()-before) / float64(c.Bytes())
			most = max(most, takes)
		}
	}
	t.Logf("%d bytes are accounted for each of %d entries, of which they take %.2f, and %.2f at most", c.overhead, len(c.entries), takes, most)
	if most > 1 || takes < 0.5 {
		t.Errorf("entries take %.2f of what is accounted, and %.2f at most", takes, most)
	}
	runtime.KeepAlive(c)
}

func TestLookup_AllocatesNothing(t *testing.T) {
	c := New[pair, *int](mebi)
	for n := range uint64(8) {
		c.Load(pair{1, n, 1}, func() (*int, int, error) { return new(int), 8, nil })
	}
	n, held := uint64(0), 0
	each := testing.AllocsPerRun(1000, func() {
		if _, ok := c.Lookup(pair{1, n % 9, 1}); ok {
			held++
		}
		n++
	})
	if each != 0 || held == 0 || held == int(n) {
		t.Errorf("%v allocations each, %d of %d held", each, held, n)
	}
}

const mebi = 1 << 20

func BenchmarkLookup(b *testing.B) {
	const keys = 4096
	c := New[pair, *int](keys * 1024)
	for n := range uint64(keys) {
		c.Load(pair{1, n, 1}, func() (*int, int, error) { return new(int), 8, nil })
	}
	for _, s := range []struct {
		name string
		mask uint64
	}{{"one", 0}, {"8", 7}, {"4096", keys - 1}} {
		b.Run(s.name, func(b *testing.B) {
			n := uint64(0)
			for b.Loop() {
				n += 5
				if _, ok := c.Lookup(pair{1, n & s.mask, 1}); !ok {
					b.Fatal("it is not held")
				}
			}
		})
	}
	b.Run("parallel", func(b *testing.B) {
		b.RunParallel(func(p *testing.PB) {
			for n := uint64(0); p.Next(); n += 5 {
				if _, ok := c.Lookup(pair{1, n & (keys - 1), 1}); !ok {
					b.Error("it is not held")
				}
			}
		})
	})
}

func BenchmarkLoad(b *testing.B) {
	c := New[pair, *int](32 * mebi)
	v := new(int)
	b.ReportAllocs()
	n := uint64(0)
	for b.Loop() {
		n++
		c.Load(pair{1, n, 1}, func() (*int, int, error) { return v, 1024, nil })
	}
}
