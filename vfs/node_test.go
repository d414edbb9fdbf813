package vfs

import "testing"

func TestNodeTable_IsEmptyOnceAllIsForgotten(t *testing.T) {
	var table nodeTable
	table.init(&entry{})
	root := table.byNodeID(rootID)
	// What an open directory lists stays the same however often the kernel forgets it.
	listed := root.child(&entry{name: "a"}, place{}, "a", "a")
	first := table.lookup(root, listed)
	id := first.id
	table.forget(id, 1)
	second := table.lookup(root, listed)
	if first.id != id || second.id == id || table.byNodeID(id) != nil || table.byNodeID(second.id) != second {
		t.Errorf("node %d was forgotten, and is now %d; the new one is %d", id, first.id, second.id)
	}
	if again := table.lookup(root, listed); again != second {
		t.Errorf("a known child got node %d besides %d", again.id, second.id)
	}
	table.forget(second.id, 1)
	if table.byNodeID(second.id) == nil {
		t.Error("it is gone with a lookup left")
	}
	table.forget(second.id, 1)

	// The directory itself was forgotten, and found again under another ID.
	b := root.child(&entry{name: "b"}, place{}, "b", "b")
	old := table.lookup(root, b)
	inOld := table.lookup(old, listed)
	table.forget(old.id, 1)
	young := table.lookup(root, b)
	inYoung := table.lookup(young, listed)
	for _, n := range []uint64{inOld.id, inYoung.id, young.id} {
		table.forget(n, 1)
	}
	if table.len() != 1 || len(table.byKey) != 0 {
		t.Errorf("%d nodes and %d keys are left, want the root alone", table.len(), len(table.byKey))
	}
}
