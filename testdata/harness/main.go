// Command harness runs the project's tests: it shows what go test does in a form for
// people, counts, and fails where the tests left something behind on the machine.
//
// Usage: harness [-v] -- go test -json …  [-- go test -json …]
//
// Its last line is "N passed, N failed, N skipped", which counts tests without
// subtests of their own; its exit status tells whether all is well.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"domfs/backend/backendtest/leftover"
	"domfs/testdata/tally"

	"golang.org/x/sys/unix"
)

func main() {
	verbose := flag.Bool("v", false, "show the output of tests that pass, too")
	flag.Parse()
	os.Exit(run(commands(flag.Args()), *verbose))
}

// commands splits the arguments at "--".
func commands(args []string) [][]string {
	var all [][]string
	for _, arg := range args {
		switch {
		case arg == "--" || len(all) == 0:
			all = append(all, nil)
			if arg == "--" {
				continue
			}
		}
		all[len(all)-1] = append(all[len(all)-1], arg)
	}
	return all
}

func run(commands [][]string, verbose bool) int {
	// What a test leaves running becomes our child, wherever it was started from.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "harness: prctl:", err)
		return 1
	}
	dir, err := os.MkdirTemp("", "domfs-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "harness:", err)
		return 1
	}
	// Tests run programs as other users, who must get in.
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, "harness:", err)
		return 1
	}
	scope := leftover.Scope{Temp: dir, Reap: true}
	before := scope.Read()
	mode := tally.Brief
	if verbose {
		mode = tally.Verbose
	}
	count := tally.New(os.Stdout, mode)
	status := 0
	for _, command := range commands {
		if len(command) == 0 {
			continue
		}
		if err := runOne(command, dir, count); err != nil {
			fmt.Printf("FAIL: %s: %v\n", strings.Join(command, " "), err)
			status = 1
		}
	}
	if left, _ := scope.Settle(before, 3*time.Second); len(left) > 0 {
		status = 1
		fmt.Println("FAIL: the tests left behind:")
		for _, l := range left {
			fmt.Println("    " + l)
		}
	}
	leftover.EndChildren()
	_ = os.RemoveAll(dir)
	if _, failed, _ := count.Totals(); failed > 0 {
		status = 1
	}
	fmt.Println(count.Last())
	return status
}

// runOne runs one go test -json with its temporary folders under dir.
func runOne(command []string, dir string, count *tally.Tally) error {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	// An interrupt reaches the tests by the terminal; we stay to look after them. (Caught,
	// not ignored: they would inherit that.)
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, syscall.SIGINT)
	defer signal.Stop(interrupts)
	if err := cmd.Start(); err != nil {
		return err
	}
	readErr := count.Read(out)
	if err := cmd.Wait(); err != nil {
		return err
	}
	return readErr
}
