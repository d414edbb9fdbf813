package main

import (
	"fmt"
	"os"

	"domfs/vfs"

	"go.uber.org/zap"
)

// raiseReadAhead sets the read-ahead of the mount on path. It takes root; without, large reads
// are merely slower. The mount is looked up in the kernel's list, not touched: a daemon that waits
// for its own answer may wait forever.
func raiseReadAhead(path string, log *zap.Logger) {
	top, mounted, err := topMount(path)
	if err != nil || !mounted {
		return
	}
	file := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", top.Major, top.Minor)
	if err := os.WriteFile(file, []byte(fmt.Sprint(vfs.ReadAhead>>10)), 0); err != nil {
		log.Debug("read-ahead stays at the kernel's default", zap.Error(err))
	}
}
