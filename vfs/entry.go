package vfs

import (
	"fmt"
	"io"
	"strings"

	"domfs/backend"
)

// gateMode is the mode of a domain's directory: with --allow-other it decides who
// gets at the domain's disks.
const gateMode = 0o750

// entry is one line of the tree: a directory unless show, link, raw, events or files
// says otherwise.
type entry struct {
	name string // literal, or with a placeholder in angle brackets
	doc  string // for `domfs tree`
	mode uint32 // permission bits; 0 is 0444 for files, 0555 for directories
	kids []entry
	// volume adds VOLUME's entries to kids; kids win where both have a name.
	volume bool

	// Of an entry with a placeholder: list names all that are there, find resolves one
	// (ErrNotExist), with a key that tells it apart from others that had the name before.
	list func(c *call, at place) ([]string, error)
	find func(c *call, at place, name string) (found place, key string, err error)

	when func(c *call, at place) (bool, error) // nil: always there

	show   func(c *call, at place) (string, error)                // a value file's content, without newline
	set    func(c *call, at place, value string) error            // what a write to it does
	fixed  func(c *call, at place) error                          // why set is refused whatever is written; nil: it is not
	link   func(c *call, at place) (string, error)                // a symbolic link's target
	target string                                                 // the same, for domfs tree
	mkdir  func(c *call, at place, name string) error             // in this directory
	rmdir  func(c *call, at place, name string) error             //
	rename func(c *call, at place, oldName, newName string) error // within this directory

	fleeting bool // it may go while what it is in stays: the kernel asks each time

	raw    bool // the volume's bytes
	events bool
	files  bool // the root of the guest's filesystem
	root   bool // a directory, with the guest's files as the guest mounts them
}

// place says which object of the host a node belongs to. Only what the node's path fixes is
// filled in.
type place struct {
	domain string // in xenstore/
	dir    string // in snapshots/
	setID  string
	vdev   string
	path   string // partitions below the disk: p1, p1/p5; without vdev, below all disks: lvm/vg0, lvm/vg0/root/p1
	pool   string
}

func (e *entry) placeholder() bool { return e.find != nil }

func (e *entry) isDir() bool {
	return e.show == nil && e.link == nil && !e.raw && !e.events && !e.files
}

// children are the entries of a directory.
func (e *entry) children() []*entry {
	var out []*entry
	for i := range e.kids {
		out = append(out, &e.kids[i])
	}
	if e.volume {
		for i := range volume {
			v := &volume[i]
			own := false
			for j := range e.kids {
				own = own || e.kids[j].name == v.name
			}
			if !own {
				out = append(out, v)
			}
		}
	}
	return out
}

func (e *entry) fileType() backend.FileType {
	switch {
	case e.link != nil:
		return backend.TypeSymlink
	case e.isDir() || e.files:
		return backend.TypeDir
	}
	return backend.TypeRegular
}

func (e *entry) perm() uint32 {
	switch {
	case e.link != nil:
		return 0o777
	case e.mode != 0:
		return e.mode
	case e.isDir() && (e.mkdir != nil):
		return 0o755
	case e.isDir():
		return 0o555
	}
	return 0o444
}

// WriteTree prints the tree, as `domfs tree` does.
func WriteTree(w io.Writer) error {
	var b strings.Builder
	b.WriteString("<mount>/\n")
	writeEntries(&b, tree.kids, "  ")
	b.WriteString("\nVOLUME: a disk, a partition in it, and a guest LV\n")
	writeEntries(&b, volume, "  ")
	_, err := io.WriteString(w, b.String())
	return err
}

func writeEntries(b *strings.Builder, entries []entry, indent string) {
	const docColumn = 34
	for i := range entries {
		e := &entries[i]
		name := indent + e.name
		if e.isDir() || e.files {
			name += "/"
		}
		if e.set != nil {
			name += " (rw)"
		}
		if e.link != nil {
			name += " -> " + e.target
		}
		fmt.Fprintf(b, "%-*s %s\n", docColumn-1, name, e.doc)
		writeEntries(b, e.kids, indent+"  ")
	}
}
