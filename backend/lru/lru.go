// Package lru holds what was read last, up to a number of bytes. Where several ask for what is not there, one
// reads it and the others wait.
package lru

import (
	"errors"
	"reflect"
	"sync"
)

const (
	// mapPlaces is how many places Go's map comes to have at most for each that is taken, where entries come and go for long:
	// 6.3 of those for keys of 24 bytes, and 3.2 for 8. It is less than 3 before the first one is dropped.
	mapPlaces     = 7
	mapPlaceBytes = 1 // beside the key and the value
	// allocUnit is what sizes of allocations are rounded up to, of those up to 256 bytes.
	allocUnit = 16
)

var errPanicked = errors.New("another reader of the same was waited for, and panicked: see its own error")

// entry is a value that is held.
type entry[K comparable, V any] struct {
	key        K
	value      V
	bytes      int          // with the entry's own
	prev, next *entry[K, V] // guarded by Cache.mu
}

// flight is a value that is being read.
type flight[V any] struct {
	done  sync.WaitGroup // until the value or the error is there
	value V
	err   error
}

// Cache holds values by their keys. A value is shared by all who have it, and stays valid after the cache has dropped
// it: nobody changes it.
type Cache[K comparable, V any] struct {
	max      int // bytes
	overhead int // bytes of an entry, but for its value's own

	mu      sync.Mutex
	bytes   int                // guarded by mu; of all entries
	entries map[K]*entry[K, V] // guarded by mu
	flights map[K]*flight[V]   // guarded by mu; those that were not forgotten
	ring    entry[K, V]        // guarded by mu; next is the one used last, prev the one to drop
}

// New returns a Cache that never holds more than maxBytes: the values' bytes, as Load is told them, and what the
// cache needs to hold them. Values that are being read are not counted: there are no more of them than readers.
func New[K comparable, V any](maxBytes int) *Cache[K, V] {
	c := &Cache[K, V]{max: maxBytes, overhead: overhead[K, V](), entries: map[K]*entry[K, V]{}, flights: map[K]*flight[V]{}}
	c.ring.prev, c.ring.next = &c.ring, &c.ring
	return c
}

// overhead is the bytes that an entry and its place in the map take.
func overhead[K comparable, V any]() int {
	size := int(reflect.TypeFor[entry[K, V]]().Size()+allocUnit-1) / allocUnit * allocUnit
	place := int(reflect.TypeFor[K]().Size()+reflect.TypeFor[*entry[K, V]]().Size()) + mapPlaceBytes
	return size + place*mapPlaces
}

// Lookup returns the value of a key, if there is one. While another reader reads it, it waits; ok is false if that fails.
func (c *Cache[K, V]) Lookup(key K) (value V, ok bool) {
	c.mu.Lock()
	if e := c.entries[key]; e != nil {
		c.useLocked(e)
		value = e.value
		c.mu.Unlock()
		return value, true
	}
	f := c.flights[key]
	c.mu.Unlock()
	if f == nil {
		return value, false
	}
	f.done.Wait()
	return f.value, f.err == nil
}

// Load returns the value of a key, and calls read if it is not there and no other reader reads it. bytes is what
// the value takes, without the cache's own; one too large for the cache is returned, and not held.
//
// All who wait for one read have its error, which is not kept: the next one reads again. A panic of read goes on, and
// is an error for those who wait. read does not load the same key.
func (c *Cache[K, V]) Load(key K, read func() (value V, bytes int, err error)) (V, error) {
	c.mu.Lock()
	if e := c.entries[key]; e != nil {
		c.useLocked(e)
		value := e.value
		c.mu.Unlock()
		return value, nil
	}
	if f := c.flights[key]; f != nil {
		c.mu.Unlock()
		f.done.Wait()
		return f.value, f.err
	}
	f := &flight[V]{err: errPanicked}
	f.done.Add(1)
	c.flights[key] = f
	c.mu.Unlock()

	bytes := 0
	defer func() {
		c.land(key, f, bytes)
		f.done.Done()
	}()
	value, bytes, err := read()
	if f.err = err; err == nil {
		f.value = value
	}
	return f.value, err
}

// land ends a flight, and holds its value.
func (c *Cache[K, V]) land(key K, f *flight[V], bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flights[key] != f {
		return // forgotten
	}
	delete(c.flights, key)
	if f.err != nil || bytes > c.max-c.overhead {
		return
	}
	e := &entry[K, V]{key: key, value: f.value, bytes: bytes + c.overhead}
	for c.bytes > c.max-e.bytes {
		c.dropLocked(c.ring.prev)
	}
	c.bytes += e.bytes
	c.entries[key] = e
	c.pushLocked(e)
}

// Forget drops the values of the keys for which gone is true. Those who wait for one that is being read get it, but it is
// not held, and who asks after Forget has returned does not get it: the key is read again. gone does not use the Cache.
func (c *Cache[K, V]) Forget(gone func(K) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := c.ring.next; e != &c.ring; {
		next := e.next
		if gone(e.key) {
			c.dropLocked(e)
		}
		e = next
	}
	for key := range c.flights {
		if gone(key) {
			delete(c.flights, key)
		}
	}
}

// Bytes is how much is held, as New counts it.
func (c *Cache[K, V]) Bytes() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes
}

func (c *Cache[K, V]) dropLocked(e *entry[K, V]) {
	e.prev.next, e.next.prev = e.next, e.prev
	e.prev, e.next = nil, nil
	delete(c.entries, e.key)
	c.bytes -= e.bytes
}

// useLocked makes e the one used last.
func (c *Cache[K, V]) useLocked(e *entry[K, V]) {
	if c.ring.next != e {
		e.prev.next, e.next.prev = e.next, e.prev
		c.pushLocked(e)
	}
}

func (c *Cache[K, V]) pushLocked(e *entry[K, V]) {
	e.prev, e.next = &c.ring, c.ring.next
	e.prev.next, e.next.prev = e, e
}
