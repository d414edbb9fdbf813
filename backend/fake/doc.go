// Package fake is a host in memory: hypervisors and stores that work, for the tests of
// control and vfs.
//
// Capabilities are optional interfaces, so what a driver can do is chosen when its
// backend.Hypervisor or backend.Store is asked for (Driver), and each choice is a type of
// its own. The Hypervisor and Store themselves are the other side: what a test does to
// the host behind domfs's back, and what it sees there.
package fake
