// Command lab runs the tests that need a real host: it boots Debian's own kernel, LVM, udev
// and device-mapper in QEMU's software emulation, runs each package's TestLab… there, and
// shows and counts them as make test does.
//
// Usage: lab [flags]
//
// What it boots is built once, from Debian's packages as this machine's apt gets them, and
// kept in ~/.cache/domfs-lab by a hash of what it is made from. Several labs may run
// at once: each has its own disks, which are gone when it ends, however it ends.
//
// Tests named TestLabXen… run in a machine of their own, which Xen boots with that kernel as its dom0, and the others are dealt out to
// machines without Xen, so that all are done at about the same time. They make guests, of the same kernel, that write to their disks: domu/.
//
// With -bench it runs the packages' BenchmarkLab… instead, and shows what they measure.
//
// Its last line is "N passed, N failed, N skipped". It fails where a test fails, where a
// test binary leaves something on the machine, where the machine's kernel or Xen panics, oopses
// or hangs, and where nothing is heard for too long.
//
//	image/    what is built once: packages, kernel modules, init
//	guest/    what runs in the machine
//	report/   what the two say to each other
//	times     how long tests took when that was last written down (-times), by which they are dealt out
//	domu/     what runs in Xen's guests, and what their records say of a copy of their disks
package main
