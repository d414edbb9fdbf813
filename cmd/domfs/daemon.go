package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"reflect"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The two words that a daemon says to who started it, each before one line of text.
const (
	readyWord  = "ready "
	failedWord = "failed "
	// maxReport bounds what is read from the daemon.
	maxReport = 64 << 10
)

// startDaemon runs the program anew in a session of its own, and returns when its mount
// is there, or with its error. (A process with threads cannot fork itself.)
func (c *mountCommand) startDaemon() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	output := null // where a crash of the runtime is written
	if c.LogFile != "" {
		if output, err = os.OpenFile(c.LogFile, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640); err != nil {
			return fmt.Errorf("--log-file: %w", err)
		}
		defer output.Close()
	}
	report, say, err := os.Pipe()
	if err != nil {
		return err
	}
	defer report.Close()
	const sayFD = 3
	child, err := os.StartProcess("/proc/self/exe", append([]string{os.Args[0]}, c.daemonArgs(sayFD)...), &os.ProcAttr{
		Dir:   "/",
		Env:   withoutNotify(os.Environ()),
		Files: []*os.File{null, output, output, say},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	say.Close()
	if err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	// Who gives up on us while we wait gives up on the daemon, too.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer signal.Stop(signals)
	go func() {
		for s := range signals {
			_ = child.Signal(s)
		}
	}()
	text, err := io.ReadAll(io.LimitReader(report, maxReport))
	if err != nil {
		return fmt.Errorf("wait for the daemon: %w", err)
	}
	line := strings.TrimSpace(string(text))
	if message, ok := strings.CutPrefix(line, readyWord); ok {
		fmt.Fprintln(c.stdout, message)
		return child.Release()
	}
	state, err := child.Wait()
	if message, ok := strings.CutPrefix(line, failedWord); ok {
		return errors.New(message)
	}
	if err != nil {
		return fmt.Errorf("wait for the daemon: %w", err)
	}
	return fmt.Errorf("the daemon ended before its mount was there: %v", state)
}

// nameProcess makes ps and pgrep show the daemon as domfs: the kernel named it after the link by
// which it was started. The name is the main thread's, whichever thread writes it.
func nameProcess() error { return os.WriteFile("/proc/self/comm", []byte("domfs"), 0) }

// daemonArgs is the command line of the daemon: every option as it was given, with absolute paths.
func (c *mountCommand) daemonArgs(fd int) []string {
	args := []string{"mount", "--ready-fd=" + strconv.Itoa(fd)}
	v := reflect.ValueOf(c).Elem()
	for i := range v.NumField() {
		tag := v.Type().Field(i).Tag
		if tag.Get("long") == "" || tag.Get("hidden") != "" || tag.Get("long") == "daemon" {
			continue
		}
		option := "--" + tag.Get("long")
		switch value := v.Field(i).Interface().(type) {
		case bool:
			if value {
				args = append(args, option)
			}
		case string:
			args = append(args, option+"="+value)
		case []string:
			for _, one := range value {
				args = append(args, option+"="+one)
			}
		default:
			panic(fmt.Sprintf("%s is of a type that daemonArgs does not know", option))
		}
	}
	return append(args, "--", c.Args.Mountpoint)
}

// withoutNotify takes systemd's socket from an environment: the daemon's number is not
// the one that systemd waits for.
func withoutNotify(env []string) []string {
	var kept []string
	for _, e := range env {
		if !strings.HasPrefix(e, "NOTIFY_SOCKET=") {
			kept = append(kept, e)
		}
	}
	return kept
}

// pipe is the daemon's end of the pipe to who started it.
type pipe struct{ f *os.File }

func readyPipe(fd int) (*pipe, error) {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
		return nil, usagef("--ready-fd %d: %v", fd, err)
	}
	return &pipe{os.NewFile(uintptr(fd), "ready-fd")}, nil
}

// ready says that the mount is there, and hangs up.
func (p *pipe) ready(message string) {
	fmt.Fprintln(p.f, readyWord+message)
	p.Close()
}

// failed says why there is no mount; after ready it says nothing.
func (p *pipe) failed(err error) {
	if err != nil {
		fmt.Fprintln(p.f, failedWord+err.Error())
	}
}

func (p *pipe) Close() { p.f.Close() }
