package main

import (
	"strings"
	"testing"
)

func TestConsole_KnowsAKernelThatIsNotWell(t *testing.T) {
	tests := []struct {
		line  string
		fault bool
	}{
		{"[   12.3] BUG: kernel NULL pointer dereference, address: 0000000000000018", true},
		{"[   12.3] BUG: unable to handle page fault for address: ffffc90000a00000", true},
		{"[   12.3] kernel BUG at drivers/md/dm-snap.c:1234!", true},
		{"[   12.3] Oops: 0000 [#1] PREEMPT SMP NOPTI", true},
		{"[   12.3] general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP", true},
		{"[   12.3] Kernel panic - not syncing: Fatal exception", true},
		{"[  142.3] INFO: task lvs:123 blocked for more than 120 seconds.", true},
		{"[  142.3] watchdog: BUG: soft lockup - CPU#1 stuck for 61s! [lvs:123]", true},
		{"(XEN) Panic on CPU 0:", true},
		{"(XEN) [   12.3] Xen BUG at mm.c:1234", true},
		{"(XEN) Assertion 'x' failed at mm.c:12", true},
		{"(XEN) Hardware Dom0 crashed: rebooting machine in 5 seconds.", true},
		{"(XEN) Scrubbing Free RAM in background", false},
		{"(XEN) Domain 3 (vcpu#0) crashed on cpu#0:", false},
		{"[    4.2] device-mapper: core: CONFIG_IMA_DISABLE_HTABLE is disabled.", false},
		{"[    4.2] device-mapper: snapshots: Invalidating snapshot: Unable to allocate exception.", false},
		{"[    4.2] EXT4-fs error (device dm-1): ext4_lookup:1234: inode #2: comm ls", false},
		{"lab DEBUG: nothing", false},
		{"Starting systemd-udevd version 252.39-1~deb12u2", false},
	}
	for _, test := range tests {
		c := newConsole(nil)
		// In two pieces, as a serial line has them.
		half := len(test.line) / 2
		for _, piece := range []string{"before\r\n" + test.line[:half], test.line[half:] + "\r\nafter\r\n"} {
			if n, err := c.Write([]byte(piece)); n != len(piece) || err != nil {
				t.Fatalf("write: %d, %v", n, err)
			}
		}
		select {
		case line := <-c.fault:
			if !test.fault || line != test.line {
				t.Errorf("%q is taken for a fault: %q", test.line, line)
			}
		default:
			if test.fault {
				t.Errorf("%q is not taken for a fault", test.line)
			}
		}
	}
}

func TestConsole_KeepsTheEndOnly(t *testing.T) {
	c := newConsole(nil)
	if _, err := c.Write([]byte(strings.Repeat("x", 100*maxLineBytes) + "\n" + strings.Repeat("line\n", 1000) + "last\n")); err != nil {
		t.Fatal(err)
	}
	last := c.last()
	if len(last) != tailLines || last[len(last)-1] != "last" {
		t.Errorf("%d lines, the last %q", len(last), last[len(last)-1])
	}
}
