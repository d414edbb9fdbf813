package main

import (
	"encoding/gob"
	"encoding/json"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

const (
	workerArg   = "-worker"
	memoryLimit = 256 << 20 // bytes, of the process that reads an image
)

// job is what a worker is told. The files are its descriptors from 3 on.
type job struct {
	Formats []string // of each file: raw, qcow2
	Target  int      // the file that is changed
	Pages   map[int64][]byte
	Walk    string // how it is read: "" as domfs does; tests have others
}

// walks are the ways to read.
var walks = map[string]func(w *walker, files []*changed, formats []string){"": asDomfs}

// work is the worker: it reads what its job says, and writes a report.
func work() error {
	var j job
	if err := gob.NewDecoder(os.Stdin).Decode(&j); err != nil {
		return fmt.Errorf("the job: %w", err)
	}
	files := make([]*changed, len(j.Formats))
	for i := range files {
		var pages map[int64][]byte
		if i == j.Target {
			pages = j.Pages
		}
		var err error
		if files[i], err = openChanged(os.NewFile(uintptr(3+i), fmt.Sprintf("file %d", i)), pages); err != nil {
			return err
		}
	}
	if err := limitMemory(); err != nil {
		return err
	}
	debug.SetTraceback("all")
	w := newWalker()
	walks[j.Walk](w, files, j.Formats)
	var err error
	if w.PeakKiB, err = status("VmHWM"); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(&w.report)
}

// limitMemory makes the runtime fail where it maps more than memoryLimit beyond what it
// has mapped already, of which it uses little.
func limitMemory() error {
	kib, err := status("VmData")
	if err != nil {
		return err
	}
	limit := uint64(kib<<10 + memoryLimit)
	return unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: limit, Max: limit})
}

// status is a value of this process' status in proc, in KiB.
func status(key string) (kib int64, err error) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	_, rest, found := strings.Cut(string(text), key+":")
	if _, err := fmt.Sscan(rest, &kib); !found || err != nil {
		return 0, fmt.Errorf("no %s in the status of this process: %w", key, err)
	}
	return kib, nil
}

// asDomfs opens the first file, whose backing files the others are, and looks at what is in it.
func asDomfs(w *walker, files []*changed, formats []string) {
	var d, backing backend.Device
	for i := len(files) - 1; i >= 0; i-- {
		backing = d
		if d = w.format(formats[i], files[i], backing); d == nil {
			return
		}
	}
	if formats[0] != "raw" {
		w.content("the disk", d, inFile)
		w.snapshots(files[0], backing)
	}
	w.device(d, 0)
}
