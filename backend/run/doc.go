// Package run runs the host's tools (lvm, xl, losetup …). It is the only package of
// domfs that starts processes.
//
// A tool gets no shell, an environment of its own (LC_ALL=C and a fixed PATH), the
// working directory /, /dev/null to read, none of our descriptors, a session of its
// own without a terminal to ask questions on, and a deadline. Its output is capped. A
// tool that is late is told to end (SIGTERM, for LVM to leave its critical section),
// then killed with all that it started; one that cannot be killed, as it waits for a
// device, is left behind and reaped when it ends.
//
// A program that is to run beside us for a while, with a pipe in each direction, is a Child; it is started in the
// same surroundings, and has no deadline but its own.
//
// Names that come from outside are arguments after "--"; that is the caller's care.
//
// What a driver's tests need of the host is a Transcript: recorded once from the real
// tools, replayed anywhere (package runtest).
package run
