// Package xen finds the domains that exist on this Xen host, of which it must be domain 0: in xenstored, and by xl.
//
// # Domains
//
// They are those of /local/domain, without domain 0, that xl lists, too. The name is what xenstored says, the UUID that of
// the path in vm. The state is none of xenstored's matters: `xl list` is asked for it at each reading, once for
// all domains, after xenstored, so that a domain that it lacks has ended. xl, and no hypercall of our own, because the
// hypervisor refuses calls of another version's interface, and because the states are to be those that xl shows: of its
// letters, d is dying, c crashed, s shutdown, p paused, and everything else running. Should a domain be listed that xenstored did not have,
// both are asked again. A domain that is dying and has no record in xenstored any more is not shown.
//
// Where xenstored or xl cannot be asked there is no list: it would be wrong to say that nothing runs.
//
// # Disks
//
// A disk is what the toolstack wrote down of it in /libxl/<domid>/device/vbd/<devid> (virtio_disk for disks of
// virtio's kind), where only domain 0 may write, and, of what the backend in this domain wrote into its own directory
// (/local/domain/0/backend/<kind>/<domid>/<devid>), whether the disk is being removed and which device is open. What
// the guest's own directory says, which the guest may write, is never read. That a name, a disk or a
// backend's directory could be written by another domain is checked by its permissions, and that `backend` leads to where it must. A domain of
// which that cannot be said has an error, and what is not trusted is left out.
//
// A disk that is being removed is there until the backend has closed it (online is 0 and state is 6): until then the
// guest may write to it.
//
//	type    params                 Backend     Format, Source
//	phy     PATH                   phy         raw, PATH
//	phy     and tapdisk-params     tap         as tapdisk-params says, FORMAT:PATH
//	qdisk   FORMAT:PATH            qdisk       aio is raw; others as they are
//
// A disk served by blkback is the device that blkback has open (physical-device): where its path names another one now, as after
// an lvrename, the source is that device's, with a warning; where a block script other than the standard one made the device
// (physical-device-path), it is that, too. A disk that another domain serves is shown, and nothing more.
//
// # Changes
//
// Watch learns of domains by @introduceDomain and @releaseDomain, of names by a watch each, of disks by one of
// /libxl, and of sizes by one of this domain's backends. None of these nodes can a guest write, but it can make its
// backend write, by connecting anew: so of a backend's nodes only those that matter are looked at, and only a new value is a
// change. What changes at once is told once, ten times a second at most. An admin's `xl pause` is in no store: it is
// seen by the next reading.
//
// While xenstored is away, it is looked for twice a second.
//
// # Pauses
//
// A domain is paused and resumed by `xl pause` and `xl unpause`, with its number: one that was started anew has another and is
// never touched. Xen counts pauses, and refuses to resume what is not paused. Both commands exit with 0 though Xen has refused:
// what they write to standard error tells. A process of its own, the keeper (package hold), runs them, so that the domain is resumed once, whatever
// becomes of us. Where it is not known whether a pause or a resumption has happened, as a tool was killed in between, `xl list` is
// asked: a domain that shows as paused, and had not been before, is paused by us. One that had been is left as it
// is then. So is whatever has the domain's number after the host was started anew.
//
// # Sizes
//
// Linux's blkback tells the guest of a device's new size by itself, within 100 ms, also where the guest is idle or paused; `sectors`
// in its directory shows that it has. QEMU, tapdisk and loop devices keep the size that they found; QEMU is also what a guest of the
// kind hvm uses as long as no driver of Xen's in it has connected to the disk.
//
// # Attaching and detaching
//
// `xl block-attach` and `xl block-detach`. A disk is attached once its backend is connected (state is 4), which the guest's part
// is in; else it is taken back, unless it is another one, which somebody else has attached under that name meanwhile. A guest that does not let go of a disk within ten seconds keeps it, from Xen 4.15 on; before
// that it loses it, so that those are not asked to detach. xl leaves such a disk asked to close (online is 0, state is 5), which is
// taken back: else the guest would lose it when it closes it next. Whether a guest uses a disk cannot be seen from here, and
// Linux's blkfront of 5.16 and later gives up a disk that is in use.
//
// # Sources
//
// Xen's docs/misc/xenstore.txt and xenstore-paths.pandoc; tools/libs/light/libxl_disk.c, libxl_device.c and libxl_create.c for what is
// written where and by whom; tools/xl/xl_info.c for `xl list`, xl_vmcontrol.c and xl_block.c for what changes
// a domain; xen/common/domain.c for how pauses are counted; Linux's drivers/block/xen-blkback and xen-blkfront.c; tools/hotplug/Linux/block for what scripts write; each of 4.17, and 4.10 for tap.
package xen
