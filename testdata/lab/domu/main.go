// Command domu is the first program of the lab's guests. It writes records to the guest's disks, tells on the console
// what has come of that, and does what it is told there.
//
// It says, a line each:
//
//	up                  all is mounted
//	synced N            record N is on its disk
//	size DISK SECTORS   a disk is there, or has another size now, in sectors of 512 bytes
//	size DISK gone
//	said ID TEXT        a line that a command wrote
//	done ID STATUS      a command has ended
//	error TEXT          no more records are written
//
// A line that it is told is ID COMMAND: idle (no more records are written once it is done), go, or what a shell does.
// From a shell, "/sbin/init xenstore write PATH VALUE" and the like change the guest's own part of xenstore.
//
// On the kernel's command line, lab.data=DEVICE is the filesystem of the second disk, lab.pace=DURATION the time
// between records, and lab.idle starts without any.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Where the guest's filesystems have their records, as the test sees them, too.
const (
	rootRecords = "/srv/records"
	dataDir     = "/data"
	dataRecords = dataDir + "/records"
)

const (
	deviceLimit = 30 * time.Second       // until the second disk is there
	defaultPace = 200 * time.Millisecond // a record costs a processor that is emulated about 60 ms
)

func main() {
	if len(os.Args) > 1 {
		if err := xenstore(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "init:", err)
			os.Exit(1)
		}
		return
	}
	if err := run(); err != nil {
		say("error %v", err)
	}
	stop(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

var console = struct {
	mu  sync.Mutex
	out io.Writer // guarded by mu
}{out: os.Stdout}

// say writes one line to the console, whole.
func say(format string, args ...any) {
	line := fmt.Sprintf(format, args...) + "\n"
	console.mu.Lock()
	defer console.mu.Unlock()
	_, _ = io.WriteString(console.out, line)
}

func run() error {
	// What is told is not to come back as what is said.
	if err := rawInput(); err != nil {
		return err
	}
	if err := os.Setenv("PATH", "/sbin:/bin"); err != nil {
		return err
	}
	if err := unix.Mount("tmp", "/tmp", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount /tmp: %w", err)
	}
	options, err := commandLine()
	if err != nil {
		return err
	}
	paths := []string{rootRecords}
	if device := options["lab.data"]; device != "" {
		if err := mountData(device); err != nil {
			return err
		}
		paths = append(paths, dataRecords)
	}
	pace := defaultPace
	if text := options["lab.pace"]; text != "" {
		if pace, err = time.ParseDuration(text); err != nil {
			return err
		}
	}
	writer, err := newWriter(paths, pace)
	if err != nil {
		return err
	}
	sizes, err := newSizes("/sys/block")
	if err != nil {
		return err
	}
	say("up")
	go sizes.watch()
	if _, idle := options["lab.idle"]; !idle {
		writer.setRunning(true)
	}
	go obey(os.Stdin, writer)
	signals := make(chan os.Signal, 1)
	// What the kernel's programs for these tell a first process, as busybox has it.
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGTERM)
	got := <-signals
	writer.setRunning(false)
	if got == syscall.SIGTERM {
		stop(unix.LINUX_REBOOT_CMD_RESTART)
	}
	return nil
}

// stop ends the guest, with all on its disks.
func stop(how int) {
	unix.Sync()
	_ = unix.Unmount(dataDir, 0)
	_ = unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
	if err := unix.Reboot(how); err != nil {
		say("error %v", err)
	}
	select {}
}

func rawInput() error {
	t, err := unix.IoctlGetTermios(0, unix.TCGETS)
	if err != nil {
		return fmt.Errorf("the console: %w", err)
	}
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ISIG
	return unix.IoctlSetTermios(0, unix.TCSETS, t)
}

// commandLine are the words of the kernel's, those without a value with an empty one.
func commandLine() (map[string]string, error) {
	text, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, err
	}
	words := map[string]string{}
	for word := range strings.FieldsSeq(string(text)) {
		key, value, _ := strings.Cut(word, "=")
		words[key] = value
	}
	return words, nil
}

func mountData(device string) error {
	for deadline := time.Now().Add(deviceLimit); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Mount(device, dataDir, "ext4", unix.MS_NOATIME, "")
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENXIO) || time.Now().After(deadline) {
			return fmt.Errorf("mount %s: %w", device, err)
		}
	}
}

// shell runs a command and tells what it says.
func shell(id, command string) int {
	out, err := exec.Command("/bin/sh", "-c", command).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		say("said %s %s", id, strings.TrimRight(line, "\n"))
	}
	if err == nil {
		return 0
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	say("said %s %v", id, err)
	return -1
}
