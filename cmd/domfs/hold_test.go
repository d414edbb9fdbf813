package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// pausable is a Xen with one domain, number 7, that counts its pauses in the file 7, and notes in the file log what xl is asked for.
type pausable struct {
	t   *testing.T
	dir string
}

func newPausable(t *testing.T) *pausable {
	t.Helper()
	p := &pausable{t, t.TempDir()}
	must(t, os.WriteFile(p.dir+"/xl", []byte(`#!/bin/sh
cd "$(dirname "$0")"
n=$(cat 7)
case $1 in
list)
	printf 'Name  ID   Mem VCPUs\tState\tTime(s)\nDomain-0  0  512  2  r-----  1.0\n'
	p=-; [ "$n" -gt 0 ] && p=p
	echo "web01  7  128  1  -b$p---  0.1" ;;
pause) echo $((n + 1)) >new; mv new 7; echo pause >>log ;;
unpause) echo $((n - 1)) >new; mv new 7; echo unpause >>log ;;
esac
`), 0o755))
	must(t, os.WriteFile(p.dir+"/7", []byte("0\n"), 0o600))
	return p
}

func (p *pausable) pauses() string { return strings.TrimSpace(readFile(p.t, p.dir+"/7")) }
func (p *pausable) asked() string {
	return strings.Join(strings.Fields(readFile(p.t, p.dir+"/log")), " ")
}

// pause pauses the domain, as its admin does.
func (p *pausable) pause() { must(p.t, os.WriteFile(p.dir+"/7", []byte("1\n"), 0o600)) }

// hold starts a keeper of a pause, as a daemon does, and waits until it has paused the domain.
func (p *pausable) hold() (cmd *exec.Cmd, input *os.File) {
	p.t.Helper()
	before := p.pauses()
	theirs, input, err := os.Pipe()
	must(p.t, err)
	p.t.Cleanup(func() { input.Close() })
	cmd = exec.Command(binary, "hold", "--", "paused", "web01")
	cmd.Stdin = theirs
	out, err := cmd.StdoutPipe()
	must(p.t, err)
	must(p.t, cmd.Start())
	theirs.Close()
	p.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	lines := bufio.NewScanner(out)
	_, err = fmt.Fprintf(input, `{"kind":"paused","record":"%s/lock.held-1","begin_ns":20000000000,"hold_ns":60000000000,"end_ns":20000000000,"task":{"xl":"%s/xl","domid":7}}`+"\n", p.dir, p.dir)
	must(p.t, err)
	for _, step := range []struct{ say, want string }{{"", `{"event":"ready"}`}, {"begin\n", `{"event":"begun"}`}} {
		_, err := input.WriteString(step.say)
		must(p.t, err)
		if !lines.Scan() || lines.Text() != step.want {
			p.t.Fatalf("the keeper says %q, want %q", lines.Text(), step.want)
		}
	}
	if n := p.pauses(); n == before {
		p.t.Errorf("the domain is paused %s times", n)
	}
	return cmd, input
}

// wantResumed checks that the one pause was undone once, and that there are those of others alone.
func (p *pausable) wantResumed(others string) {
	p.t.Helper()
	if n, asked := p.pauses(), p.asked(); n != others || asked != "pause unpause" {
		p.t.Errorf("the domain is paused %s times, want %s; xl was asked to %s", n, others, asked)
	}
	if left, _ := filepath.Glob(p.dir + "/lock.held-*"); len(left) != 0 {
		p.t.Errorf("records are left: %q", left)
	}
}

func TestHold_ResumesADomainWhenItsDaemonEnds(t *testing.T) {
	p := newPausable(t)
	keeper, input := p.hold()
	must(t, input.Close())
	must(t, keeper.Wait())
	p.wantResumed("0")
}

func TestReleaseHeld_ResumesWhatWasLeftPaused(t *testing.T) {
	for name, release := range map[string]func(p *pausable){
		"by hand": func(p *pausable) { command(t, binary, "release-held", "--lock-file="+p.dir+"/lock") },
		"at the next start": func(p *pausable) {
			h := emptyHost(t)
			m, err := h.start(nil, h.mnt, "--lock-file="+p.dir+"/lock")
			must(t, err)
			m.stop()
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, others := range []string{"0", "1"} {
				p := newPausable(t)
				if others == "1" {
					p.pause()
				}
				keeper, input := p.hold()
				held := p.pauses()
				if others == "0" {
					command(t, binary, "release-held", "--lock-file="+p.dir+"/lock") // the keeper lives
					if n := p.pauses(); n != held {
						t.Errorf("the domain is paused %s times while it is kept so, and was %s times", n, held)
					}
				}
				// It dies together with its daemon, and what follows comes at once.
				must(t, unix.Kill(keeper.Process.Pid, unix.SIGKILL))
				must(t, input.Close())
				release(p)
				p.wantResumed(others)
			}
		})
	}
}
