// Package xenstore is a client of xenstored, the store in which the toolstack, the backends and the guests of a
// Xen host tell each other what is there. It reads and watches; it writes nothing.
//
// # Transport
//
// xenstored is reached over its socket, or over the kernel's device, which leads to it wherever it runs (a domain of
// its own, too). Both carry the same messages: a header of four 32-bit numbers in the machine's byte order (type,
// request, transaction, length) and at most 4096 bytes. Requests are answered in any order, so that many can be
// under way; replies are told apart by their request number. The kernel's device answers to WATCH and UNWATCH
// itself, with the request number 0: of these there is one at a time.
//
// # A store that does not behave
//
// What comes in is bounded and checked: a message that is too long, an answer to nothing, a list that does not end, a
// value of the wrong form. Such a peer is disconnected, and everybody who waits for it gets the reason. A
// call never waits longer than its context, and not longer than Options.Timeout; a peer that has said nothing for that
// long is disconnected, too. A lost connection fails what is under way at once; the next call connects anew, and sets up
// the watches again, each of which fires then: nothing that happened meanwhile is missed.
//
// # Sources
//
// docs/misc/xenstore.txt and xen/include/public/io/xs_wire.h of Xen, and Linux's
// drivers/xen/xenbus/xenbus_dev_frontend.c for the device.
package xenstore
