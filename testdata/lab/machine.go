package main

import (
	"fmt"
	"runtime"
	"slices"
	"strings"

	"domfs/testdata/lab/report"
)

// commandLine is the kernel's. A panic ends the machine at once; an oops is a panic. With addresses
// as they were the last time, QEMU has translated a program already: commands take a third of the time.
var commandLine = strings.Join([]string{
	"console=ttyS0", "quiet",
	"panic=-1", "oops=panic", "watchdog_thresh=30",
	"mitigations=off", "norandmaps", "cryptomgr.notests", "modprobe.blacklist=kvm,kvm_amd,kvm_intel",
}, " ")

// Up to which level the kernel's messages are shown: with warnings, and without.
const (
	logWarnings = 5
	logAlerts   = 2
)

// machineCommand is QEMU's command line. The report goes to descriptor 3, the console to
// standard input and output. Nothing of it is shared with another lab but what nobody writes.
func machineCommand(i image, d disks, memoryMiB, logLevel int) []string {
	return shareCommand(i, d, memoryMiB, logLevel, 0, 1)
}

// shareCommand is machineCommand for one of so many machines, which share the processors.
func shareCommand(i image, d disks, memoryMiB, logLevel, share, machines int) []string {
	drive := func(name, file, options string) []string {
		return []string{
			"-drive", fmt.Sprintf("if=none,id=%s,file=%s,format=raw,cache=unsafe,%s", name, strings.ReplaceAll(file, ",", ",,"), options),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=%s,serial=%s", name, name),
		}
	}
	args := []string{
		"qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-name", "domfs-lab",
		"-machine", "pc", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "qemu64", // the fewest features to emulate
		"-smp", "2", "-m", fmt.Sprint(memoryMiB),
		"-display", "none", "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-kernel", i.kernel, "-initrd", i.initrd, "-append", fmt.Sprintf("%s loglevel=%d %s=%d", commandLine, logLevel, report.ShareKey, share),
		"-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
		"-chardev", "file,id=report,path=/dev/fd/3", "-device", "virtserialport,chardev=report,name=lab.report",
	}
	if machines > 1 {
		// Two threads for each of two processors' worth of machines would wait for each other.
		args[slices.Index(args, "-smp")+1] = fmt.Sprint(max(1, min(2, runtime.NumCPU()/machines)))
	}
	args = append(args, drive("root", i.root, "snapshot=on")...)
	args = append(args, drive("payload", d.payload, "readonly=on")...)
	return append(args, drive("scratch", d.scratches[share], "discard=unmap")...)
}
