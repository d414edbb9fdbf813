package main

import (
	"bytes"
	"io"
	"regexp"
	"strings"
	"sync"
)

// kernelFault is what a kernel, or Xen, says when it can no longer be trusted.
var kernelFault = regexp.MustCompile(`Kernel panic|kernel BUG at|\bBUG: |\bOops: |general protection fault|[Uu]nable to handle (kernel|page fault)|soft lockup|hard LOCKUP|blocked for more than \d+ seconds|Internal error: |\(XEN\).*(Panic on CPU|Assertion |Xen BUG at|Hardware Dom0 crashed|Domain 0 crashed)`)

const (
	tailLines    = 60
	maxLineBytes = 4096 // the rest of a longer one is a line of its own
)

// console follows the machine's console: what its kernel says.
type console struct {
	copy  io.Writer   // may be nil
	fault chan string // the first line that is a fault

	mu   sync.Mutex
	part []byte   // guarded by mu: a line that has not ended
	tail []string // guarded by mu
}

func newConsole(copy io.Writer) *console {
	return &console{copy: copy, fault: make(chan string, 1)}
}

func (c *console) Write(p []byte) (int, error) {
	if c.copy != nil {
		_, _ = c.copy.Write(p)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.part = append(c.part, p...)
	for {
		end := bytes.IndexByte(c.part, '\n')
		if end < 0 && len(c.part) < maxLineBytes {
			return len(p), nil
		}
		if end < 0 {
			end = len(c.part) - 1
		}
		c.lineLocked(strings.TrimRight(string(c.part[:end+1]), "\r\n"))
		c.part = append([]byte(nil), c.part[end+1:]...)
	}
}

func (c *console) lineLocked(line string) {
	c.tail = append(c.tail, line)
	if len(c.tail) > tailLines {
		c.tail = c.tail[1:]
	}
	if kernelFault.MatchString(line) {
		select {
		case c.fault <- line:
		default: // one is enough
		}
	}
}

// last is the end of what was said.
func (c *console) last() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.tail...)
}
