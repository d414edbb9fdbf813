package main

import (
	"fmt"
	"runtime"
	"strings"

	"domfs/testdata/lab/report"
)

// commandLine is the kernel's. A panic ends the machine at once; an oops is a panic. With addresses
// as they were the last time, QEMU has translated a program already: commands take a third of the time.
var commandLine = strings.Join([]string{
	"quiet",
	"panic=-1", "oops=panic", "watchdog_thresh=30",
	"mitigations=off", "norandmaps", "cryptomgr.notests", "modprobe.blacklist=kvm,kvm_amd,kvm_intel",
	cheapKernel,
}, " ")

// cheapKernel leaves out what no test looks at and what costs an emulated processor a tenth of its time: accounting and checks with each
// page, copy and file, and a string instruction that QEMU does piece by piece. Who waits for readers of RCU, as device-mapper does, waits less.
const cheapKernel = "apparmor=0 audit=0 cgroup_disable=memory psi=0 hardened_usercopy=off randomize_kstack_offset=off clearcpuid=rep_good rcupdate.rcu_expedited=1"

// Up to which level the kernel's messages are shown: with warnings, and without.
const (
	logWarnings = 5
	logAlerts   = 2
)

// guestsMiB is what Xen and its guests have of the memory; dom0 has the rest.
const guestsMiB = 1024

// xenCommandLine is Xen's. Its console, and dom0's through it, is the machine's. What protects from a real processor costs an
// emulated one a fifth of its time.
const xenCommandLine = "console=com1 com1=115200,8n1 loglvl=warning guest_loglvl=warning spec-ctrl=no"

// machineOptions are what machines differ in.
type machineOptions struct {
	kind      kind
	memoryMiB int
	logLevel  int
	share     int // which of the machines it is
	machines  int // how many run at the same time, and share the processors
}

// machineCommand is QEMU's command line. The report goes to descriptor 3, the console to
// standard input and output. Nothing of it is shared with another lab but what nobody writes.
func machineCommand(i image, d disks, o machineOptions) []string {
	drive := func(name, file, options string) []string {
		return []string{
			"-drive", fmt.Sprintf("if=none,id=%s,file=%s,format=raw,cache=unsafe,%s", name, escape(file), options),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=%s,serial=%s", name, name),
		}
	}
	args := []string{
		"qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-name", "domfs-lab",
		"-machine", "pc", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "qemu64", // the fewest features to emulate
		"-smp", fmt.Sprint(processors(o)), "-m", fmt.Sprint(o.memoryMiB),
		"-display", "none", "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
		"-chardev", "file,id=report,path=/dev/fd/3", "-device", "virtserialport,chardev=report,name=lab.report",
	}
	kernel := fmt.Sprintf("%s loglevel=%d %s=%d", commandLine, o.logLevel, report.ShareKey, o.share)
	if o.kind == withXen {
		dom0 := o.memoryMiB - guestsMiB
		args = append(args,
			"-kernel", i.xen, "-append", fmt.Sprintf("%s dom0_mem=%dM,max:%dM", xenCommandLine, dom0, dom0),
			// Modules, with commas between: dom0's kernel with its command line, and its initrd.
			"-initrd", escape(i.unpacked+" console=hvc0 "+kernel)+","+escape(i.initrd))
	} else {
		args = append(args, "-kernel", i.kernel, "-initrd", i.initrd, "-append", "console=ttyS0 "+kernel)
	}
	args = append(args, drive("root", i.root, "snapshot=on")...)
	args = append(args, drive("payload", d.payload, "readonly=on")...)
	return append(args, drive("scratch", d.scratches[o.share], "discard=unmap")...)
}

// processors of a machine. Two threads for each of two processors' worth of machines would wait for each other;
// Xen's processors do so in any case, and two of them do everything at less than half the speed of one.
func processors(o machineOptions) int {
	switch {
	case o.kind == withXen:
		return 1
	case o.machines > 1:
		return max(1, min(2, runtime.NumCPU()/o.machines))
	default:
		return 2
	}
}

// escape is a value in a list with commas.
func escape(text string) string { return strings.ReplaceAll(text, ",", ",,") }
