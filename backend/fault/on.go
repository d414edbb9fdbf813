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
	count = map[string]int{} // guarded by mu
)

// Point marks a step by its name, such as "snapshot.commit".
func Point(name string) {
	mu.Lock()
	count[name]++
	n := count[name]
	mu.Unlock()
	if path := os.Getenv("DOMFS_FAULT_TRACE"); path != "" {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
		if err == nil {
			fmt.Fprintln(f, name)
			f.Close()
		}
	}
	want, nth, found := strings.Cut(os.Getenv("DOMFS_FAULT"), ":")
	k := 1
	if found {
		k, _ = strconv.Atoi(nth)
	}
	if want == name && n == k {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}
