// Package hold keeps a guest in a state that must not outlive us: paused, or frozen.
//
// The state is kept by a process of its own, the keeper: our own program once more, in a session of its own, with
// the root directory for its folder and no descriptors but two pipes, so that nothing of a mount's can hold it up. It begins
// the state, says so, and ends it when it is told to, when we die (its input ends), on SIGTERM, SIGINT or SIGHUP, or when
// the time is over, whichever is first. Where the keeper itself is killed, we notice and end the state in its place.
//
// A record of what is held lies in a file meanwhile, locked by the keeper: where both were killed at one time (a
// supervisor that kills the whole group), Release ends what the records name whose lock nobody has. It waits a moment for a lock:
// a process that was killed keeps its own until the kernel has taken it apart.
//
// A Task knows how to begin and end its state, and what to do where it is not known whether that
// has happened: each beginning is undone once, and what others did to the guest is not touched.
package hold
