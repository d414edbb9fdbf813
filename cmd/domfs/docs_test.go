package main

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"domfs/backend/backendtest/testneed"
	"domfs/vfs"

	"github.com/jessevdk/go-flags"
)

// options lists the long options that a command's help shows.
func options(command *flags.Command) []string {
	var names []string
	for _, o := range command.Options() {
		if !o.Hidden {
			names = append(names, o.LongName)
		}
	}
	slices.Sort(names)
	return names
}

// shownCommands are the commands that the help shows.
func shownCommands() []*flags.Command {
	return slices.DeleteFunc((&program{}).commandLine().Commands(), func(c *flags.Command) bool { return c.Hidden })
}

// manual is a page's source.
func manual(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("dist/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// found lists what the first group of pattern matches in text, sorted, each once.
func found(text, pattern string) []string {
	var names []string
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		names = append(names, m[1])
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// between is the part of text from one line to another.
func between(t *testing.T, text, from, to string) string {
	t.Helper()
	_, rest, found := strings.Cut(text, from)
	if !found {
		t.Fatalf("there is no %q", from)
	}
	part, _, found := strings.Cut(rest, to)
	if !found {
		t.Fatalf("there is no %q after %q", to, from)
	}
	return part
}

func TestManual_HasTheOptionsOfHelp(t *testing.T) {
	page := manual(t, "domfs.1")
	synopsis := between(t, page, ".Sh SYNOPSIS", ".Sh DESCRIPTION")
	const inSynopsis, inList = `(?m)^\.Op Fl .*?-([a-z-]+)`, `(?m)^\.It Fl (?:[a-z] , Fl )?-([a-z-]+)`
	sections := map[string][2]string{ // what describes a command, from where to where
		"mount":   {".Ss domfs mount", ".Ss domfs umount"},
		"umount":  {".Ss domfs umount", ".Ss domfs tree"},
		"tree":    {".Ss domfs tree", ".Ss domfs version"},
		"version": {".Ss domfs version", ".Ss Options of all commands"},
	}
	commands := shownCommands()
	for _, command := range commands {
		section, ok := sections[command.Name]
		if !ok {
			t.Errorf("the manual has no section on %s", command.Name)
			continue
		}
		want := options(command)
		if got := found(between(t, page, section[0], section[1]), inList); !slices.Equal(got, want) {
			t.Errorf("%s: the manual describes %q, --help %q", command.Name, got, want)
		}
		_, own, _ := strings.Cut(synopsis, ".Cm "+command.Name+"\n")
		own, _, _ = strings.Cut(own, ".Nm")
		if got := found(own, inSynopsis); !slices.Equal(got, want) {
			t.Errorf("%s: the synopsis has %q, --help %q", command.Name, got, want)
		}
	}
	if len(commands) != len(sections) {
		t.Errorf("the manual has %d commands, the program %d", len(sections), len(commands))
	}
}

func TestCompletions_HaveTheOptionsOfHelp(t *testing.T) {
	for _, command := range shownCommands() {
		want := append(options(command), "help")
		slices.Sort(want)
		if len(want) == 1 {
			continue // nothing but --help
		}
		line := found(manual(t, "domfs.bash"), `(?m)^    `+command.Name+`\) words='(.*)'`)
		if len(line) != 1 {
			t.Fatalf("bash knows nothing of %s", command.Name)
		}
		if got := found(line[0], `--([a-z-]+)`); !slices.Equal(got, want) {
			t.Errorf("%s: bash completes %q, --help has %q", command.Name, got, want)
		}
		zsh := between(t, manual(t, "_domfs"), "\n    "+command.Name+")\n", ";;")
		if got := found(zsh, `--([a-z-]+)`); !slices.Equal(got, want) {
			t.Errorf("%s: zsh completes %q, --help has %q", command.Name, got, want)
		}
	}
}

func TestManual_HasEveryNodeOfTheTree(t *testing.T) {
	var tree bytes.Buffer
	if err := vfs.WriteTree(&tree); err != nil {
		t.Fatal(err)
	}
	names := treeNames(tree.String())
	if len(names) < 20 {
		t.Fatalf("the tree has only %q:\n%s", names, &tree)
	}
	page := manual(t, "domfs.5")
	for _, name := range names {
		if !regexp.MustCompile(`(?m)(^|[\s/,])` + regexp.QuoteMeta(name) + `([\s/,]|$)`).MatchString(page) {
			t.Errorf("domfs(5) says nothing of %s", name)
		}
	}
	// And the other way round: each value file that the page describes is in the tree.
	for _, items := range found(page, `(?m)^\.It Pa ([a-z_]+(?: , [a-z_]+)*)$`) {
		for _, name := range strings.Split(items, " , ") {
			if !slices.Contains(names, name) {
				t.Errorf("domfs(5) describes %s, which is not in the tree", name)
			}
		}
	}
}

// treeNames are the names of nodes in what domfs tree prints: the first word of each
// indented line.
func treeNames(tree string) []string {
	return found(tree, `(?m)^ +([.a-z_<][a-z_<>]*)/?(?:\s|$)`)
}

func TestManual_HasNoFaults(t *testing.T) {
	testneed.Tools(t, "mandoc")
	out, err := exec.Command("mandoc", "-T", "lint", "-W", "warning", "dist/domfs.1", "dist/domfs.5").CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("mandoc: %v\n%s", err, out)
	}
}

func TestHelp_GoesToStandardOutputAndUsageErrorsDoNot(t *testing.T) {
	tests := []struct {
		args           []string
		status         int
		stdout, stderr string
	}{
		{[]string{"--help"}, 0, "umount", ""},
		{[]string{"mount", "--help"}, 0, "--xl-config", ""},
		{[]string{"version"}, 0, "domfs ", ""},
		{[]string{"tree"}, 0, "last_error", ""},
		{nil, 2, "", "command"},
		{[]string{"nonsense"}, 2, "", "nonsense"},
		{[]string{"mount"}, 2, "", "MOUNTPOINT"},
		{[]string{"mount", "--nonsense", "/mnt"}, 2, "", "nonsense"},
		{[]string{"mount", "--log-format=xml", "/mnt"}, 2, "", "xml"},
		{[]string{"mount", "/mnt", "/srv"}, 2, "", "/srv"},
		{[]string{"mount", "--autoextend=often", "/mnt"}, 1, "", "--autoextend: \"often\""},
		{[]string{"mount", "--snapshot-size=110%", "/mnt"}, 1, "", "--snapshot-size: \"110%\" is more than a snapshot can ever use"},
		{[]string{"mount", "--snapshot-size=big", "/mnt"}, 1, "", "--snapshot-size: \"big\" is neither a percentage nor a size"},
		{[]string{"mount", "--freeze-cmd=true", "/mnt"}, 1, "", "--freeze-cmd and --thaw-cmd are given both or not at all"},
		{[]string{"mount", "--thaw-cmd=true", "/mnt"}, 1, "", "--freeze-cmd and --thaw-cmd are given both or not at all"},
		{[]string{"mount", "--freeze-timeout=30", "/mnt"}, 1, "", "--freeze-timeout: \"30\" is no duration"},
		{[]string{"mount", "--freeze-timeout=1h", "/mnt"}, 1, "", "--freeze-timeout: 1h0m0s is not from 1s to 2m0s"},
		{[]string{"mount", "--pause-timeout=soon", "/mnt"}, 1, "", "--pause-timeout: \"soon\" is no duration"},
		{[]string{"mount", "--pause-timeout=1m", "/mnt"}, 1, "", "--pause-timeout: 1m0s is not from 1s to 30s"},
		{[]string{"umount"}, 2, "", "MOUNTPOINT"},
		{[]string{"umount", "/proc"}, 1, "", "/proc is not a domfs mount"},
		{[]string{"umount", "/does/not/exist"}, 1, "", "/does/not/exist does not exist"},
		{[]string{"version", "more"}, 2, "", "more"},
	}
	for _, test := range tests {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			p := &program{ctx: t.Context(), stdout: &stdout, stderr: &stderr}
			if status := p.run(test.args); status != test.status {
				t.Errorf("exit status %d, want %d", status, test.status)
			}
			if !strings.Contains(stdout.String(), test.stdout) || (test.stdout == "") != (stdout.Len() == 0) {
				t.Errorf("standard output %q, want %q in it", &stdout, test.stdout)
			}
			if !strings.Contains(stderr.String(), test.stderr) || (test.stderr == "") != (stderr.Len() == 0) {
				t.Errorf("standard error %q, want %q in it", &stderr, test.stderr)
			}
		})
	}
}
