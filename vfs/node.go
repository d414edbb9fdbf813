package vfs

import (
	"hash/fnv"
	"sync"
)

// node is a virtual node that the kernel knows: an entry of the tree at a place.
type node struct {
	id      uint64
	e       *entry
	at      place
	parent  *node
	name    string
	ino     uint64
	key     nodeKey
	lookups uint64 // by the kernel, not yet forgotten; guarded by nodeTable.mu
	backing backing
}

// nodeKey tells nodes apart. A snapshot's key holds its set's ID, so that the node of one that
// was removed is never reused, with the kernel's cache of it, for another of that name.
type nodeKey struct {
	parent uint64
	key    string
}

const rootID = 1

// nodeTable holds the virtual nodes. A node leaves it when the kernel forgets it.
type nodeTable struct {
	mu    sync.RWMutex
	byID  map[uint64]*node
	byKey map[nodeKey]*node
	next  uint64
}

func (t *nodeTable) init(root *entry) {
	n := &node{id: rootID, e: root, ino: rootID, lookups: 1}
	n.parent = n
	t.byID = map[uint64]*node{rootID: n}
	t.byKey = map[nodeKey]*node{}
	t.next = rootID + 1
}

// byNodeID is nil for an ID that the kernel should not know any more.
func (t *nodeTable) byNodeID(id uint64) *node {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byID[id]
}

// lookup returns the node for a child, made if need be, and counts one lookup by the kernel.
func (t *nodeTable) lookup(parent *node, child *node) *node {
	k := nodeKey{parent.id, child.key.key}
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byKey[k]
	if n == nil {
		// A new one, for an open directory may offer a child again that was forgotten.
		n = &node{id: t.next, e: child.e, at: child.at, parent: child.parent, name: child.name, ino: child.ino, key: k}
		t.next++
		t.byID[n.id] = n
		t.byKey[k] = n
	}
	n.lookups++
	return n
}

func (t *nodeTable) forget(id, count uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n == nil || id == rootID {
		return
	}
	if count < n.lookups {
		n.lookups -= count
		return
	}
	delete(t.byID, id)
	delete(t.byKey, n.key)
}

func (t *nodeTable) len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.byID)
}

// child makes the node for an entry below n, not yet in the table.
func (n *node) child(e *entry, at place, name, key string) *node {
	h := fnv.New64a()
	var parent [8]byte
	for i := range parent {
		parent[i] = byte(n.ino >> (8 * i))
	}
	h.Write(parent[:])
	h.Write([]byte(key))
	return &node{e: e, at: at, parent: n, name: name, ino: mix(h.Sum64()), key: nodeKey{key: key}}
}

// resolve finds the child called name: its entry, and where it is.
func (n *node) resolve(c *call, name string) (*node, error) {
	if !n.e.isDir() {
		return nil, gone("file", name)
	}
	for _, e := range n.e.children() {
		if e.placeholder() || e.name != name {
			continue
		}
		if e.when != nil {
			there, err := e.when(c, n.at)
			if err != nil {
				return nil, err
			}
			if !there {
				break
			}
		}
		return n.child(e, n.at, name, name), nil
	}
	for _, e := range n.e.children() {
		if !e.placeholder() {
			continue
		}
		at, key, err := e.find(c, n.at, name)
		if err != nil {
			return nil, err
		}
		return n.child(e, at, name, key), nil
	}
	return nil, gone("file", name)
}

// list resolves all children, in the tree's order.
func (n *node) list(c *call) ([]*node, error) {
	var out []*node
	for _, e := range n.e.children() {
		if !e.placeholder() {
			if e.when != nil {
				// Where that cannot be told, a lookup of the name says why.
				if there, err := e.when(c, n.at); err != nil || !there {
					continue
				}
			}
			out = append(out, n.child(e, n.at, e.name, e.name))
			continue
		}
		names, err := e.list(c, n.at)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			at, key, err := e.find(c, n.at, name)
			if err != nil {
				continue // it went while we listed
			}
			out = append(out, n.child(e, at, name, key))
		}
	}
	return out, nil
}

// mix is a bijection of 64-bit numbers that spreads them (the finalizer of splitmix64).
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	x ^= x >> 31
	return x
}
