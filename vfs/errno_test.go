package vfs

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"syscall"
	"testing"

	"domfs/backend"

	"github.com/hanwen/go-fuse/v2/fuse"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// sentinels parses backend's errors: names, and the errno that each one's comment promises.
func sentinels(t *testing.T) map[string]string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "../backend/errors.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.VAR {
			continue
		}
		for _, s := range g.Specs {
			v := s.(*ast.ValueSpec)
			for _, n := range v.Names {
				errno, _, _ := strings.Cut(strings.TrimSpace(v.Comment.Text()), ":")
				errno, _, _ = strings.Cut(errno, ",")
				out[n.Name] = errno
			}
		}
	}
	return out
}

func TestErrno_KnowsEverySentinelOfBackend(t *testing.T) {
	byName := map[string]error{
		"ErrNotExist": backend.ErrNotExist, "ErrExist": backend.ErrExist, "ErrBusy": backend.ErrBusy, "ErrNoSpace": backend.ErrNoSpace,
		"ErrUnsupported": backend.ErrUnsupported, "ErrInvalid": backend.ErrInvalid, "ErrTimeout": backend.ErrTimeout, "ErrReadOnly": backend.ErrReadOnly,
		"ErrCorrupt": backend.ErrCorrupt, "ErrPermission": backend.ErrPermission, "ErrAccess": backend.ErrAccess, "ErrNoDevice": backend.ErrNoDevice,
		"ErrIsDirectory": backend.ErrIsDirectory, "ErrNotDir": backend.ErrNotDir, "ErrNoAttr": backend.ErrNoAttr, "ErrRange": backend.ErrRange,
		"ErrStale": backend.ErrStale, "ErrTooLong": backend.ErrTooLong, "ErrIO": backend.ErrIO, "ErrNoKey": backend.ErrNoKey,
	}
	declared := sentinels(t)
	for name, want := range declared {
		err := byName[name]
		if err == nil {
			t.Errorf("backend.%s is not in this test", name)
			continue
		}
		wrapped := fmt.Errorf("disk xvda: %w", fmt.Errorf("volume 1: %w", err))
		if errno, known := Errno(wrapped); !known {
			t.Errorf("%s has no errno", name)
		} else if got := ErrnoName(wrapped); got != want {
			t.Errorf("%s is %s (%d), and its comment says %s", name, got, errno, want)
		}
	}
	if len(declared) != len(byName) {
		t.Errorf("backend declares %d sentinels, the test knows %d", len(declared), len(byName))
	}
	if len(errnos) != len(declared)+2 {
		t.Errorf("%d lines in the table for %d sentinels and 2 of context", len(errnos), len(declared))
	}
}

func TestErrno_TellsContextErrors(t *testing.T) {
	for err, want := range map[error]syscall.Errno{
		nil:                      0,
		context.Canceled:         syscall.EINTR,
		context.DeadlineExceeded: syscall.ETIMEDOUT,
		errors.Join(backend.ErrIO, context.Canceled): syscall.EINTR,
	} {
		if got, known := Errno(err); got != want || !known {
			t.Errorf("%v: %v, %v, want %v", err, got, known, want)
		}
	}
}

func TestStatus_LogsAnUnforeseenErrorAndAnswersEIO(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	f := &fileSystem{log: zap.New(core)}
	if got := f.status("read", errors.New("what is this")); got != fuse.EIO {
		t.Errorf("unknown error is %v, want EIO", got)
	}
	lines := logs.FilterLevelExact(zap.ErrorLevel).All()
	if len(lines) != 1 || lines[0].ContextMap()["op"] != "read" || !strings.Contains(fmt.Sprint(lines[0].ContextMap()["error"]), "what is this") {
		t.Errorf("logged %v", lines)
	}
	for _, known := range []error{nil, backend.ErrIO, backend.ErrCorrupt, context.Canceled, errWouldWait} {
		f.status("read", known)
	}
	if n := logs.Len(); n != 1 {
		t.Errorf("%d lines were logged for errors that are foreseen", n-1)
	}
	if got := f.status("stat", errWouldWait); got != fuse.EAGAIN {
		t.Errorf("errWouldWait is %v", got)
	}
}
