// Package fault marks the steps at which tests kill the program.
//
// Point does nothing unless the program was built with the tag "faults". With it,
// DOMFS_FAULT=NAME (or NAME:K for the K-th time that it is passed) ends the process at
// that point with SIGKILL, as a power cut or the OOM killer would, DOMFS_FAULT_FILE=FILE at the
// one that FILE names at that time, counted from when it began to, and
// DOMFS_FAULT_TRACE=FILE appends the name of every point passed to FILE, one a line.
package fault
