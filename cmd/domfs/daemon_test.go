package main

import (
	"io"
	"os/exec"
	"reflect"
	"strings"
	"testing"

	"github.com/jessevdk/go-flags"
)

func TestDaemonArgs_HaveEveryOption(t *testing.T) {
	for name, given := range map[string]mountCommand{
		"nothing": {Map: "kpartx", LogFormat: "text"},
		"everything": {XLConfig: []string{"/a", "/b c"}, ImageDir: []string{"/i"}, VG: []string{"vg0", "vg1"}, SnapSize: "30%", AutoExtend: "60:10", Foreign: true, RemoveVols: true,
			Map: "none", NoPause: true, PauseTime: "20s", FreezeCmd: "ssh $DOMFS_DOMAIN 'freeze all'", ThawCmd: "thaw", FreezeTime: "10s", AllowOther: true, Group: "12", LogFile: "/log", LogFormat: "json", LockFile: "/lock", Debug: true},
	} {
		t.Run(name, func(t *testing.T) {
			given.Args.Mountpoint = "/mnt/--x"
			if v := reflect.ValueOf(given); name == "everything" {
				for i := range v.NumField() {
					f := v.Type().Field(i)
					if f.Tag.Get("long") != "" && f.Name != "ReadyFD" && f.Name != "Daemon" && v.Field(i).IsZero() {
						t.Fatalf("the test gives no --%s", f.Tag.Get("long"))
					}
				}
			}
			read := parsed{program: &program{stdout: io.Discard, stderr: io.Discard}}
			parser := flags.NewNamedParser("domfs", flags.PassDoubleDash)
			if _, err := parser.AddCommand("mount", "m", "m", &read); err != nil {
				t.Fatal(err)
			}
			if _, err := parser.ParseArgs(given.daemonArgs(5)); err != nil {
				t.Fatal(err)
			}
			given.ReadyFD = 5
			given.program = read.program
			if !reflect.DeepEqual(mountCommand(read), given) {
				t.Errorf("the daemon reads %+v\nand was given %+v", mountCommand(read), given)
			}
		})
	}
}

// parsed is a mountCommand that does nothing but be read.
type parsed mountCommand

func (*parsed) Execute([]string) error { return nil }

func TestMount_RefusesWrongOptions(t *testing.T) {
	h := tinyHost(t)
	for option, want := range map[string]string{
		"--autoextend=often":    `--autoextend: "often" is not THRESHOLD:STEP in percent`,
		"--snapshot-size=some":  `--snapshot-size: "some" is neither a percentage nor a size`,
		"--snapshot-size=0%":    `--snapshot-size: "0%" leaves no space for copies on write`,
		"--vg=":                 "--vg: a volume group has a name",
		"--image-dir=/nonesuch": "--image-dir: stat /nonesuch: no such file or directory",
	} {
		for _, daemon := range []string{"--daemon", "--debug"} { // --debug: in the foreground
			out, err := exec.Command("timeout", "20", binary, "mount", daemon, option, "--xl-config="+h.dir+"/xen", "--lock-file="+h.dir+"/lock", "--log-file="+h.dir+"/log", h.mnt).CombinedOutput()
			if err == nil {
				_ = exec.Command(binary, "umount", h.mnt).Run()
			}
			if err == nil || !strings.Contains(string(out), want) {
				t.Errorf("mount %s %s: %v, %q; it should say %q", daemon, option, err, out, want)
			}
		}
	}
}

func TestDaemon_IsCalledDomfsInPs(t *testing.T) {
	h := tinyHost(t)
	t.Cleanup(func() { _ = exec.Command(binary, "umount", "--lazy", h.mnt).Run() })
	command(t, binary, "mount", "--daemon", "--xl-config="+h.dir+"/xen", "--lock-file="+h.dir+"/lock", "--log-file="+h.dir+"/log", h.mnt)
	top, _, err := topMount(h.mnt)
	must(t, err)
	pid := daemonOf(top)
	if pid == 0 || processName(pid) != "domfs" {
		t.Errorf("the daemon is process %d, called %q", pid, processName(pid))
	}
	if !mountsAt(pid, h.mnt) { // how it is found where the kernel does not tell
		t.Error("the daemon is not found by its name and arguments")
	}
	command(t, binary, "umount", h.mnt)
}
