package main

import (
	"errors"

	"domfs/backend"
	"domfs/backend/all"
	"domfs/backend/format/qcow2"
)

// formatNamed is the reader of files that are not raw; nil if there is none.
func formatNamed(name string) backend.Format {
	for _, f := range all.Formats() {
		if f.Name() == name {
			return f
		}
	}
	return nil
}

// format opens a file; nil if that is refused.
func (w *walker) format(name string, file, backing backend.Device) backend.Device {
	if name == "raw" {
		return file
	}
	f := formatNamed(name)
	if f == nil {
		w.Refused = "there is no reader of " + name
		return nil
	}
	h, err := f.Header(file)
	if errors.Is(err, backend.ErrUnsupported) {
		w.Refused = err.Error()
		return nil
	}
	if !w.check("header", anywhere, err) { // of which there is one
		return nil
	}
	switch {
	case h.Backing == "":
		backing = nil
	case backing == nil:
		w.Refused = "a backing file that is not in the chain"
		return nil
	}
	d, err := f.Open(file, backing)
	if errors.Is(err, backend.ErrUnsupported) {
		w.Refused = err.Error()
		return nil
	}
	if !w.check("open of the "+name, inFile, err) {
		return nil
	}
	if d.Size() != h.SizeBytes {
		w.problem("two sizes", "%d bytes as the header has it, %d open", h.SizeBytes, d.Size())
	}
	return d
}

const maxSnapshots = 4

// snapshots reads the first of the snapshots that are within a qcow2 file.
func (w *walker) snapshots(file, backing backend.Device) {
	list, err := qcow2.New().Snapshots(file)
	w.check("the list of snapshots", inFile, err)
	for _, s := range list[:min(len(list), maxSnapshots)] {
		d, err := qcow2.New().OpenSnapshot(file, backing, s.ID)
		if w.check("open of a snapshot", inFile, err) {
			w.content("a snapshot", d, inFile)
		}
	}
}
