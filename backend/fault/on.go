//go:build faults

package fault

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

var (
	mu    sync.Mutex
	end   string             // guarded by mu; where the process is to end, as it was last told
	count = map[string]int{} // guarded by mu; what was passed since end is that
)

// Point marks a step by its name, such as "snapshot.commit".
func Point(name string) {
	if path := os.Getenv("DOMFS_FAULT_TRACE"); path != "" {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
		if err == nil {
			fmt.Fprintln(f, name)
			f.Close()
		}
	}
	if endsAt(name) {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

// endsAt counts a point that is passed, and tells whether the process is to end there.
func endsAt(name string) bool {
	mu.Lock()
	defer mu.Unlock()
	now := os.Getenv("DOMFS_FAULT")
	if path := os.Getenv("DOMFS_FAULT_FILE"); path != "" {
		text, _ := os.ReadFile(path) // none yet
		now = strings.TrimSpace(string(text))
	}
	if now != end {
		end = now
		clear(count)
	}
	count[name]++
	want, nth, found := strings.Cut(end, ":")
	k := 1
	if found {
		k, _ = strconv.Atoi(nth)
	}
	return want == name && count[name] == k
}
