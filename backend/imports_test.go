package backend_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write testdata/imports.golden")

// pkg is what `go list -json` says of a package.
type pkg struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string // of the files that are not tests
}

const module = "domfs"

func listPackages(t *testing.T) []pkg {
	t.Helper()
	// What a program that we start reads is unknown to go test's cache of results, so read the folders here, too.
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && (d.Name() == ".git" || d.Name() == "testdata") {
			return fs.SkipDir
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Dir,GoFiles,Imports", module+"/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, stderr.Bytes())
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return pkgs
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(p.GoFiles) > 0 { // else there are only tests in it
			pkgs = append(pkgs, p)
		}
	}
}

// within tells whether path is root or below it.
func within(path, root string) bool { return path == root || strings.HasPrefix(path, root+"/") }

func withinAny(path string, roots ...string) bool {
	return slices.ContainsFunc(roots, func(root string) bool { return within(path, module+"/"+root) })
}

// ours tells whether path is a package of this module, thirdParty whether it is in neither this nor Go's library.
func ours(path string) bool { return within(path, module) }
func thirdParty(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !ours(path) && strings.Contains(first, ".")
}

// driver is the folder of a driver (domfs/backend/store/lvm) that path is in, "" if in none.
func driver(path string) string {
	parts := strings.SplitN(path, "/", 5)
	if len(parts) < 4 || parts[0] != module || parts[1] != "backend" || !slices.Contains([]string{"hypervisor", "store", "format", "guest", "mapper"}, parts[2]) {
		return ""
	}
	return strings.Join(parts[:4], "/")
}

// forTests tells whether a package is there for tests (its name ends in test, as httptest does):
// it may use what others may not, and only tests and its like may import it.
func forTests(path string) bool {
	return withinAny(path, "backend/backendtest", "backend/fake") || ours(path) && strings.HasSuffix(path, "test")
}

// importFault says why the package from may not import the package to, "" if it may.
func importFault(from, to string) string {
	switch {
	case to == "os/exec" && !within(from, module+"/backend/run") && !forTests(from):
		return "only backend/run starts programs"
	case within(to, "github.com/hanwen/go-fuse") && !withinAny(from, "vfs"):
		return "only vfs knows FUSE"
	case within(to, "github.com/jessevdk/go-flags") && !withinAny(from, "cmd"):
		return "only cmd knows the command line"
	case from == module+"/backend" && (ours(to) || thirdParty(to)):
		return "backend imports the standard library only"
	case !ours(to):
		return ""
	case forTests(to) && !forTests(from):
		return "it is for tests only"
	case withinAny(from, "cmd"):
		return ""
	case withinAny(to, "cmd"):
		return "nothing imports cmd"
	case withinAny(from, "vfs"):
		if to != module+"/backend" && !withinAny(to, "vfs", "control", "backend/proc") {
			return "vfs imports control, backend and backend/proc"
		}
	case withinAny(from, "control"):
		if to != module+"/backend" && !withinAny(to, "control", "backend/fault") {
			return "control imports backend, and no driver"
		}
	case withinAny(to, "vfs", "control"):
		return "data flows one way: vfs to control to backend"
	case withinAny(from, "backend/all") || forTests(from):
		return ""
	case driver(from) != "":
		if to != module+"/backend" && !withinAny(to, "backend/run", "backend/fault", "backend/proc", "backend/syserr", "backend/blockdev", "backend/devmapper", "backend/hostdev", "backend/lru") && driver(to) != driver(from) {
			return "a driver imports backend, backend/run, backend/fault, backend/proc, backend/syserr, backend/blockdev, backend/devmapper, backend/hostdev and backend/lru, and never another driver"
		}
	case driver(to) != "" || withinAny(to, "backend/all"):
		return "only backend/all and cmd name drivers"
	}
	return ""
}

func TestImports_FollowTheRule(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, to := range p.Imports {
			if fault := importFault(p.ImportPath, to); fault != "" {
				t.Errorf("%s imports %s: %s", p.ImportPath, to, fault)
			}
		}
	}
}

func TestImports_AreThoseOfTheGoldenFile(t *testing.T) {
	var b strings.Builder
	b.WriteString("# What each package imports of this module and of others, tests left out.\n# go test ./backend -run Imports -update writes it.\n")
	for _, p := range listPackages(t) {
		fmt.Fprintf(&b, "%s\n", p.ImportPath)
		for _, to := range p.Imports {
			if ours(to) || thirdParty(to) {
				fmt.Fprintf(&b, "\t%s\n", to)
			}
		}
	}
	const golden = "testdata/imports.golden"
	if *update {
		if err := os.MkdirAll(filepath.Dir(golden), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range difference(string(want), b.String()) {
		t.Error(line)
	}
}

// difference says which imports are in one of two golden texts only.
func difference(want, got string) []string {
	flat := func(text string) []string {
		var lines []string
		from := ""
		for line := range strings.Lines(text) {
			line = strings.TrimSuffix(line, "\n")
			switch to, isImport := strings.CutPrefix(line, "\t"); {
			case strings.HasPrefix(line, "#"):
			case isImport:
				lines = append(lines, from+" imports "+to)
			default:
				from = line
				lines = append(lines, "there is a package "+line)
			}
		}
		return lines
	}
	var out []string
	w, g := flat(want), flat(got)
	for _, line := range g {
		if !slices.Contains(w, line) {
			out = append(out, "new, not in the golden file: "+line)
		}
	}
	for _, line := range w {
		if !slices.Contains(g, line) {
			out = append(out, "no longer so, but in the golden file: "+line)
		}
	}
	return out
}

func TestImports_RuleRefusesWhatTheArchitectureForbids(t *testing.T) {
	for _, c := range []struct {
		from, to string
		refused  bool
	}{
		{"backend", "fmt", false},
		{"backend", "domfs/backend/run", true},
		{"backend", "golang.org/x/sys/unix", true},
		{"backend/store/image", "domfs/backend", false},
		{"backend/store/image", "domfs/backend/run", false},
		{"backend/store/image", "domfs/backend/fault", false},
		{"backend/store/image", "domfs/backend/store/image/manifest", false},
		{"backend/store/phy", "domfs/backend/blockdev", false},
		{"backend/blockdev", "domfs/backend/store/phy", true},
		{"backend/blockdev", "domfs/backend/proc", false},
		{"control", "domfs/backend/blockdev", true},
		{"backend/store/image/manifest", "domfs/backend/store/image", false},
		{"backend/store/image", "golang.org/x/sys/unix", false},
		{"backend/store/image", "go.uber.org/zap", false},
		{"backend/store/image", "domfs/backend/store/phy", true},
		{"backend/store/image", "domfs/backend/store/images", true},
		{"backend/guest/part", "domfs/backend/guest/blkid", true},
		{"backend/guest/part", "domfs/backend/all", true},
		{"backend/guest/part", "domfs/backend/fake", true},
		{"backend/guest/part", "domfs/backend/backendtest/testneed", true},
		{"backend/guest/part", "domfs/control", true},
		{"backend/guest/part", "os/exec", true},
		{"backend/guest/part", "github.com/hanwen/go-fuse/v2/fuse", true},
		{"backend/all", "domfs/backend/guest/part", false},
		{"backend/all", "domfs/control", true},
		{"backend/run", "os/exec", false},
		{"backend/run", "domfs/backend", false},
		{"backend/run", "domfs/backend/store/image", true},
		{"backend/run", "domfs/backend/run/runtest", true},
		{"backend/run/runtest", "domfs/backend/run", false},
		{"backend/backendtest/testneed", "os/exec", false},
		{"backend/fake", "domfs/backend/fault", false},
		{"control", "domfs/backend", false},
		{"control", "domfs/backend/fault", false},
		{"control", "domfs/backend/run", true},
		{"control", "domfs/backend/guest/part", true},
		{"control", "domfs/backend/all", true},
		{"control", "domfs/vfs", true},
		{"control", "os/exec", true},
		{"vfs", "domfs/control", false},
		{"vfs", "domfs/backend", false},
		{"vfs", "domfs/backend/store/image", true},
		{"vfs", "domfs/backend/fault", true},
		{"vfs", "domfs/backend/proc", false},
		{"control", "domfs/backend/proc", true},
		{"backend/store/image", "domfs/backend/proc", false},
		{"backend/mapper/loop", "domfs/backend/hostdev", false},
		{"backend/mapper/loop", "domfs/backend/mapper/kpartx", true},
		{"control", "domfs/backend/mapper/kpartx", true},
		{"control", "domfs/backend/hostdev", true},
		{"backend/format/qcow2", "domfs/backend/lru", false},
		{"backend/lru", "domfs/backend/format/qcow2", true},
		{"control", "domfs/backend/lru", true},
		{"vfs", "domfs/cmd/domfs", true},
		{"vfs", "github.com/hanwen/go-fuse/v2/fuse", false},
		{"vfs", "github.com/jessevdk/go-flags", true},
		{"cmd/domfs", "domfs/vfs", false},
		{"cmd/domfs", "domfs/backend/all", false},
		{"cmd/domfs", "domfs/backend/hypervisor/xlcfg", false},
		{"cmd/domfs", "github.com/jessevdk/go-flags", false},
		{"cmd/domfs", "github.com/hanwen/go-fuse/v2/fuse", true},
		{"cmd/domfs", "os/exec", true},
		{"cmd/domfs", "domfs/backend/fake", true},
	} {
		if fault := importFault(module+"/"+c.from, c.to); (fault != "") != c.refused {
			t.Errorf("%s imports %s: %q, want it refused: %v", c.from, c.to, fault, c.refused)
		}
	}
}

func TestLogger_IsNeverGlobal(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, name := range p.GoFiles {
			fset := token.NewFileSet()
			file, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, 0)
			if err != nil {
				t.Error(err)
				continue
			}
			for _, use := range globalLoggers(file) {
				t.Errorf("%s: %s: the logger is passed in", fset.Position(use.Pos()), use.Sel.Name)
			}
		}
	}
}

// globalLoggers finds the uses of zap's global loggers in a file.
func globalLoggers(file *ast.File) []*ast.SelectorExpr {
	zap := ""
	for _, imp := range file.Imports {
		if path, err := strconv.Unquote(imp.Path.Value); err == nil && path == "go.uber.org/zap" {
			if zap = "zap"; imp.Name != nil {
				zap = imp.Name.Name
			}
		}
	}
	var found []*ast.SelectorExpr
	ast.Inspect(file, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := sel.X.(*ast.Ident); ok && zap != "" && x.Name == zap &&
			slices.Contains([]string{"L", "S", "ReplaceGlobals", "RedirectStdLog", "RedirectStdLogAt"}, sel.Sel.Name) {
			found = append(found, sel)
		}
		return true
	})
	return found
}

func TestLogger_CheckFindsGlobalOnes(t *testing.T) {
	for src, want := range map[string]int{
		`package p; import "go.uber.org/zap"; func f() { zap.L().Info("x"); zap.S() }`:                     2,
		`package p; import z "go.uber.org/zap"; func f() { z.ReplaceGlobals(nil) }`:                        1,
		`package p; import "go.uber.org/zap"; func f(l *zap.Logger) { l.Info("L", zap.String("a", "b")) }`: 0,
		`package p; import "other/zap"; func f() { zap.L() }`:                                              0,
	} {
		file, err := parser.ParseFile(token.NewFileSet(), "p.go", src, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(globalLoggers(file)); got != want {
			t.Errorf("%s: %d found, want %d", src, got, want)
		}
	}
}
