package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

func TestMainJob_IsDoneAsTheReadmeSays(t *testing.T) {
	h := sampleHost(t)
	m := h.mount()
	want := []string{"db01", "mail01", "shop01", "web01"}
	if _, err := os.Stat(filepath.Join(h.xl, "app01.cfg")); err == nil { // where its volume group could be made
		want = append([]string{"app01"}, want...)
		if got := m.read("xenstore/app01/root/home/alice/letter"); got != "a letter to bob" {
			t.Errorf("alice's letter in app01 is %q", got)
		}
	}
	if said := fmt.Sprintf("domfs: mounted on %s, %d domains\n", h.mnt, len(want)); m.line != said {
		t.Errorf("it said %q, want %q", m.line, said)
	}
	if got := m.names("xenstore"); !slices.Equal(got, want) {
		t.Errorf("domains: %q", got)
	}
	if got := m.read("xenstore/web01/disks/xvda/p2/files/etc/hostname"); got != "web01" {
		t.Errorf("the guest's hostname is %q", got)
	}
	if got := m.read("xenstore/shop01/disks/vda/p1/files/etc/hostname"); got != "shop01" {
		t.Errorf("the hostname of the guest on qcow2 is %q", got)
	}
	before := m.descriptors()

	m.snapshot("web01", "nightly")
	command(t, "tar", "-C", m.at("snapshots/web01/nightly/disks/xvda/p2/files"), "-cf", h.dir+"/web01.tar", ".")
	if list := command(t, "tar", "-tf", h.dir+"/web01.tar"); !strings.Contains(list, "./etc/hostname\n") {
		t.Errorf("the archive lacks etc/hostname:\n%s", list)
	}
	must(t, m.set("xenstore/web01/disks/xvda/size", "+1G"))
	if got := m.read("xenstore/web01/disks/xvda/size"); got != "2147483648" {
		t.Errorf("after +1G the size is %s", got)
	}
	if info, err := os.Stat(h.images + "/web01.img"); err != nil || info.Size() != 2<<30 {
		t.Errorf("the image: %v, %v", info, err)
	}
	if got := m.read("snapshots/web01/nightly/disks/xvda/size"); got != "1073741824" {
		t.Errorf("the snapshot's disk has %s bytes", got)
	}
	must(t, os.Remove(m.at("snapshots/web01/nightly")))
	if got := m.names("snapshots/web01"); len(got) != 0 {
		t.Errorf("after rmdir: %q", got)
	}
	if litter := h.litter(); len(litter) != 0 {
		t.Errorf("left in the folder of images: %q", litter)
	}
	m.leaves(before)
	m.stop()
}

func TestMount_EndsCleanly(t *testing.T) {
	ways := map[string]func(m *mount){
		"SIGTERM":         func(m *mount) { must(m.t, m.cmd.Process.Signal(unix.SIGTERM)) },
		"SIGINT":          func(m *mount) { must(m.t, m.cmd.Process.Signal(unix.SIGINT)) },
		"SIGHUP":          func(m *mount) { must(m.t, m.cmd.Process.Signal(unix.SIGHUP)) },
		"domfs umount":    func(m *mount) { command(m.t, binary, "umount", m.path) },
		"fusermount3 -u":  func(m *mount) { testneed.Tools(m.t, "fusermount3"); command(m.t, "fusermount3", "-u", m.path) },
		"umount":          func(m *mount) { testneed.Root(m.t); command(m.t, "umount", m.path) },
		"a change is due": func(m *mount) { must(m.t, os.Mkdir(m.at("snapshots/vm/x"), 0o755)); m.stop() },
	}
	for name, end := range ways {
		t.Run(name, func(t *testing.T) {
			h := tinyHost(t)
			m := h.mount()
			m.names("xenstore/vm/disks/xvda/files")
			end(m)
			m.ended()
		})
	}
}

func TestUmount_ReturnsWhenTheDaemonHasEnded(t *testing.T) {
	h := tinyHost(t)
	m := h.mount()
	command(t, binary, "umount", h.mnt)
	select {
	case <-m.done:
	case <-time.After(time.Second): // only our own reaping of it
		t.Error("the daemon runs on after umount has returned")
	}
}

func TestUmount_NamesWhoKeepsTheMountBusy(t *testing.T) {
	h := tinyHost(t)
	m := h.mount()
	user := exec.Command("sleep", "300")
	user.Dir = h.mnt
	must(t, user.Start())
	defer func() { _ = user.Process.Kill(); _ = user.Wait() }()
	out, err := exec.Command(binary, "umount", h.mnt).CombinedOutput()
	if want := fmt.Sprintf("in use by sleep (pid %d)", user.Process.Pid); err == nil || !strings.Contains(string(out), want) {
		t.Errorf("umount: %v: %s, want %q", err, out, want)
	}
	if got := m.names("xenstore"); len(got) != 1 {
		t.Errorf("a mount that is in use should stay; it shows %q", got)
	}
	command(t, binary, "umount", "--lazy", h.mnt)
	if isMounted(t, h.mnt) {
		t.Error("still in its place after --lazy")
	}
	_ = user.Process.Kill()
	m.ended()
}

func TestMount_InUseIsDetachedAtSIGTERM(t *testing.T) {
	h := tinyHost(t)
	m := h.mount()
	f, err := os.Open(m.at("xenstore/vm/disks/xvda/files/etc/hostname"))
	must(t, err)
	must(t, m.cmd.Process.Signal(unix.SIGTERM))
	eventually(t, 5*time.Second, "the mount goes from its place", func() bool { return !isMounted(t, h.mnt) })
	buf := make([]byte, 16)
	if n, err := f.ReadAt(buf, 0); string(buf[:n]) != "vm\n" {
		t.Errorf("an open file reads %q, %v", buf[:n], err)
	}
	f.Close()
	m.ended()
	if !strings.Contains(m.log.String(), "in use") {
		t.Errorf("the log says nothing of it:\n%s", m.log)
	}
}

func TestMount_SecondSignalEndsAtOnce(t *testing.T) {
	h := tinyHost(t)
	m := h.mount()
	f, err := os.Open(m.at("xenstore/vm/name")) // keeps the first from ending soon
	must(t, err)
	defer f.Close()
	must(t, m.cmd.Process.Signal(unix.SIGTERM))
	eventually(t, 5*time.Second, "the first is heard", func() bool { return strings.Contains(m.log.String(), "ending") })
	must(t, m.cmd.Process.Signal(unix.SIGTERM))
	select {
	case <-m.done:
	case <-time.After(endGrace / 2):
		t.Error("it still runs")
	}
	if isMounted(t, h.mnt) {
		t.Error("still mounted")
	}
}

func TestMount_ClearsWhatACrashLeft(t *testing.T) {
	h := tinyHost(t)
	m := h.mount()
	must(t, m.cmd.Process.Kill())
	<-m.done
	if _, err := statWithin(h.mnt, statTimeout); !dead(err) {
		t.Fatalf("after a crash the mountpoint says %v", err)
	}
	again := h.mount()
	if got := again.names("xenstore"); !slices.Equal(got, []string{"vm"}) {
		t.Errorf("after the crash: %q", got)
	}
	if !strings.Contains(again.log.String(), "crash") {
		t.Errorf("the log says nothing of it:\n%s", again.log)
	}
	again.stop()
}

func TestUmount_ClearsWhatACrashLeft(t *testing.T) {
	h := tinyHost(t)
	m := h.mount()
	must(t, m.cmd.Process.Kill())
	<-m.done
	command(t, binary, "umount", h.mnt)
	if isMounted(t, h.mnt) {
		t.Error("still mounted")
	}
}

func TestMount_RefusesBadMountpoints(t *testing.T) {
	h := tinyHost(t)
	file := filepath.Join(h.dir, "file")
	must(t, os.WriteFile(file, nil, 0o644))
	live := h.mount()
	tests := []struct {
		name, path, says string
	}{
		{"missing", h.dir + "/none", "does not exist"},
		{"missing folder", h.dir + "/none/none", "does not exist"},
		{"a file", file, "is not a directory"},
		{"not empty", h.images, "is not empty"},
		{"mounted already", h.mnt, "is a domfs mount already"},
		{"mounted already, by a link", h.dir + "/link", "is a domfs mount already"},
	}
	must(t, os.Symlink(h.mnt, h.dir+"/link"))
	for _, test := range tests {
		for _, daemon := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s daemon=%t", test.name, daemon), func(t *testing.T) {
				args := []string{"mount", "--xl-config=" + h.xl, "--lock-file=" + h.dir + "/lock", test.path}
				if daemon {
					args = append(args, "--daemon")
				}
				cmd := exec.Command(binary, args...)
				out, _ := cmd.CombinedOutput()
				if cmd.ProcessState.ExitCode() != exitFailure || !strings.Contains(string(out), test.says) {
					t.Errorf("exit status %d: %s, want %q", cmd.ProcessState.ExitCode(), out, test.says)
				}
			})
		}
	}
	live.stop()
}

func TestMount_RefusesWhatItCannotDo(t *testing.T) {
	h := tinyHost(t)
	must(t, os.Symlink("/etc/passwd", h.dir+"/trap"))
	tests := []struct {
		name string
		args []string
		says string
	}{
		{"no such group", []string{"--group=no-such-group"}, `there is no group "no-such-group"`},
		{"no such configuration", []string{"--xl-config=/does/not/exist"}, "/does/not/exist"},
		{"no such folder of images", []string{"--image-dir=/does/not/exist"}, "/does/not/exist"},
		{"images not in a folder", []string{"--image-dir=" + h.images + "/a.img"}, "is not a directory"},
		{"a lock file that is a link", []string{"--lock-file=" + h.dir + "/trap"}, "lock file"},
		{"no folder for the lock file", []string{"--lock-file=" + h.dir + "/none/lock"}, "--lock-file"},
		{"no folder for the log", []string{"--log-file=" + h.dir + "/none/log"}, "--log-file"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			cmd := exec.Command(binary, append([]string{"mount", "--lock-file=" + h.dir + "/lock", h.mnt}, test.args...)...)
			out, _ := cmd.CombinedOutput()
			if cmd.ProcessState.ExitCode() != exitFailure || !strings.Contains(string(out), test.says) {
				t.Errorf("exit status %d: %s, want %q", cmd.ProcessState.ExitCode(), out, test.says)
			}
			if isMounted(t, h.mnt) {
				t.Error("mounted all the same")
			}
		})
	}
}

func TestDaemon_IsReadyWhenTheCommandReturns(t *testing.T) {
	h := tinyHost(t)
	log := filepath.Join(h.dir, "log")
	t.Cleanup(func() { _ = exec.Command(binary, "umount", "--lazy", h.mnt).Run() })
	cmd := exec.Command(binary, "mount", "--daemon", "--xl-config=xen", "--lock-file=lock", "--log-file=log", "--log-format=json", "mnt")
	cmd.Dir = h.dir // all paths are relative
	out, err := cmd.CombinedOutput()
	if want := fmt.Sprintf("domfs: mounted on %s, 1 domain\n", h.mnt); err != nil || string(out) != want {
		t.Fatalf("%v: %q, want %q", err, out, want)
	}
	if got := readFile(t, h.mnt+"/xenstore/vm/name"); got != "vm\n" {
		t.Errorf("name: %q", got)
	}
	top, _, err := topMount(h.mnt)
	must(t, err)
	pid := daemonOf(top)
	if pid == 0 || pid == cmd.Process.Pid {
		t.Fatalf("the daemon is process %d", pid)
	}
	// As Linux before 6.16 has it found.
	if !mountsAt(pid, h.mnt) {
		t.Errorf("the daemon, %s, is not known by its name and command line", processName(pid))
	}
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("the daemon's session is %d, %v, want its own", sid, err)
	}
	if dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err != nil || dir != "/" {
		t.Errorf("the daemon's folder is %q, %v", dir, err)
	}
	for fd, want := range []string{os.DevNull, log, log} {
		if target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd)); err != nil || target != want {
			t.Errorf("the daemon's descriptor %d is %q, %v, want %s", fd, target, err, want)
		}
	}
	command(t, binary, "umount", h.mnt)
	if err := unix.Kill(pid, 0); err == nil && processName(pid) == "domfs" && !isZombie(pid) {
		t.Error("the daemon runs on")
	}
	if text := readFile(t, log); !strings.Contains(text, `"msg":"mounted"`) {
		t.Errorf("the log:\n%s", text)
	}
}

// isZombie tells whether a process has ended and waits to be reaped.
func isZombie(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.Contains(string(text), ") Z ")
}

func TestMount_TellsSystemd(t *testing.T) {
	h := tinyHost(t)
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(h.dir, "notify"), Net: "unixgram"})
	must(t, err)
	defer socket.Close()
	heard := func() string {
		buf := make([]byte, 4096)
		must(t, socket.SetReadDeadline(time.Now().Add(endLimit)))
		n, err := socket.Read(buf)
		must(t, err)
		return string(buf[:n])
	}
	m, err := h.start([]string{"NOTIFY_SOCKET=" + filepath.Join(h.dir, "notify")}, h.mnt)
	must(t, err)
	if got := heard(); !strings.HasPrefix(got, "READY=1\n") {
		t.Errorf("systemd heard %q", got)
	}
	m.stop()
	if got := heard(); got != "STOPPING=1" {
		t.Errorf("systemd heard %q at the end", got)
	}
}

func TestMount_IsOfItsOwnTypeAndSafe(t *testing.T) {
	h := tinyHost(t)
	m := h.mount()
	for line := range strings.Lines(readFile(t, "/proc/self/mounts")) {
		fields := strings.Fields(line)
		if fields[1] != h.mnt {
			continue
		}
		options := strings.Split(fields[3], ",")
		if fields[0] != "domfs" || fields[2] != fsType || !slices.Contains(options, "nosuid") || !slices.Contains(options, "nodev") {
			t.Errorf("the mount is %q", line)
		}
		m.stop()
		return
	}
	t.Error("no mount")
}

func TestSecondMount_SeesTheFirstOnesChangesWithinASecond(t *testing.T) {
	h := tinyHost(t)
	first := h.mount()
	other := filepath.Join(h.dir, "other")
	must(t, os.Mkdir(other, 0o755))
	second, err := h.start(nil, other)
	must(t, err)
	second.names("snapshots/vm")
	first.snapshot("vm", "one")
	eventually(t, seenLimit, "the snapshot is seen", func() bool { return slices.Equal(second.names("snapshots/vm"), []string{"one"}) })
	must(t, os.Rename(second.at("snapshots/vm/one"), second.at("snapshots/vm/two")))
	eventually(t, seenLimit, "the new name is seen", func() bool { return slices.Equal(first.names("snapshots/vm"), []string{"two"}) })
	must(t, second.set("xenstore/vm/disks/xvdb/size", "3M"))
	eventually(t, seenLimit, "the size is seen", func() bool { return first.read("xenstore/vm/disks/xvdb/size") == "3145728" })
	must(t, os.Remove(first.at("snapshots/vm/two")))
	eventually(t, seenLimit, "the removal is seen", func() bool { return len(second.names("snapshots/vm")) == 0 })
	first.stop()
	second.stop()
}

func TestTar_TwiceIsIdentical(t *testing.T) {
	h := sampleHost(t)
	m := h.mount()
	m.snapshot("web01", "s")
	// The POSIX format has the extended attributes, but writes tar's own process number into
	// the names of sparse files; the GNU format has the holes.
	archive := func(name string) string {
		path, files := filepath.Join(h.dir, name), m.at("snapshots/web01/s/disks/xvda/p2/files")
		command(t, "tar", "--xattrs", "--acls", "-C", files, "-cf", path, ".")
		command(t, "tar", "--format=gnu", "-S", "-C", files, "-cf", path+".gnu", ".")
		return command(t, "sh", "-c", `cat "$1" "$1.gnu" | sha256sum`, "sh", path)
	}
	first := archive("1.tar")
	if again := archive("2.tar"); again != first {
		t.Error("the second archive differs")
	}
	m.stop()
	m = h.mount()
	if again := archive("3.tar"); again != first {
		t.Error("the archive after a restart differs")
	}
	m.stop()
}
