// Command domfs shows the virtual machines of a host, their disks and snapshots of
// those as a tree of files. domfs(1) and domfs(5) are its manual.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/jessevdk/go-flags"
)

// The exit statuses, as domfs(1) has them.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

const about = "Shows the virtual machines of this host as files: their disks, partitions and guests' " +
	"files to read, a snapshot by mkdir, a larger disk by a write to its size."

// program is what every subcommand gets: where to write, so that tests can read it.
type program struct {
	ctx            context.Context
	stdout, stderr io.Writer
}

func main() {
	p := &program{ctx: context.Background(), stdout: os.Stdout, stderr: os.Stderr}
	os.Exit(p.run(os.Args[1:]))
}

// commandLine is the parser with every subcommand.
func (p *program) commandLine() *flags.Parser {
	parser := flags.NewNamedParser("domfs", flags.HelpFlag|flags.PassDoubleDash)
	parser.LongDescription = about
	for _, c := range []struct {
		name, short, long string
		data              any
		hidden            bool // run by domfs itself and its service
	}{
		{"mount", "Mount the host's domains", mountAbout, &mountCommand{program: p}, false},
		{"umount", "Unmount, and wait until the daemon has ended", umountAbout, &umountCommand{program: p}, false},
		{"tree", "Print the tree that a mount shows", treeAbout, &treeCommand{program: p}, false},
		{"version", "Print the version", versionAbout, &versionCommand{program: p}, false},
		{"hold", "Keep a guest paused or frozen", holdAbout, &holdCommand{program: p}, true},
		{"release-held", "Resume and thaw what a killed daemon has left", releaseAbout, &releaseCommand{program: p}, true},
	} {
		command, err := parser.AddCommand(c.name, c.short, c.long, c.data)
		if err != nil {
			panic(err) // the struct tags are wrong: every run would fail
		}
		command.Hidden = c.hidden
	}
	return parser
}

// run is main without its end: arguments in, exit status out.
func (p *program) run(args []string) int {
	_, err := p.commandLine().ParseArgs(args)
	var usage *flags.Error
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage) && usage.Type == flags.ErrHelp:
		fmt.Fprintln(p.stdout, usage.Message)
		return exitOK
	case errors.As(err, &usage):
		fmt.Fprintf(p.stderr, "domfs: %s\nTry `domfs --help`.\n", usage.Message)
		return exitUsage
	}
	fmt.Fprintf(p.stderr, "domfs: %v\n", err)
	return exitFailure
}

// usagef is an error in what was asked for on the command line.
func usagef(format string, args ...any) error {
	return &flags.Error{Type: flags.ErrInvalidChoice, Message: fmt.Sprintf(format, args...)}
}

// noArguments refuses what is left over on the command line.
func noArguments(args []string) error {
	if len(args) > 0 {
		return usagef("unexpected argument %q", args[0])
	}
	return nil
}
