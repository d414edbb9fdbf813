//go:build faults

package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"

	"domfs/backend"
)

func init() { maps.Copy(walks, faultyWalks) }

// hoard keeps what is in it from being collected.
var hoard [][]byte

// faultyWalks are what drivers should not do.
var faultyWalks = map[string]func(w *walker, files []*changed, formats []string){
	"panics": func(*walker, []*changed, []string) { panic("on these bytes") },
	"hangs":  func(*walker, []*changed, []string) { <-make(chan struct{}) },
	"spins": func(*walker, []*changed, []string) {
		for range 1 << 62 {
		}
	},
	"recurses":  func(*walker, []*changed, []string) { recurse(0) },
	"allocates": func(*walker, []*changed, []string) { hoard = append(hoard, make([]byte, 1<<40)) },
	"hoards": func(*walker, []*changed, []string) {
		for range 300 {
			hoard = append(hoard, bytes.Repeat([]byte{1}, 1<<20))
		}
	},
	"stays below": func(*walker, []*changed, []string) {
		for range 200 {
			hoard = append(hoard, bytes.Repeat([]byte{1}, 1<<20))
		}
	},
	"another class": func(w *walker, _ []*changed, _ []string) {
		w.check("read", inFilesystem, fmt.Errorf("inode 12: %w", backend.ErrInvalid))
	},
	"no class": func(w *walker, _ []*changed, _ []string) {
		w.check("read", inFilesystem, errors.New("inode 12 is odd"))
	},
	"no place": func(w *walker, _ []*changed, _ []string) {
		w.check("read", inFilesystem, fmt.Errorf("odd: %w", backend.ErrCorrupt))
	},
	"all right": func(w *walker, _ []*changed, _ []string) {
		w.check("read", inFilesystem, fmt.Errorf("inode 12: %w", backend.ErrCorrupt))
	},
	"expected": func(w *walker, _ []*changed, _ []string) {
		w.check("lookup", inFilesystem, fmt.Errorf("none: %w", backend.ErrNotExist), backend.ErrNotExist)
	},
}

func recurse(n int) int { return recurse(n+1) + n }
