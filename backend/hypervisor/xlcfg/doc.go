// Package xlcfg finds the domains of a Xen host in the configuration files that
// its admin keeps for xl: /etc/xen/*.cfg and /etc/xen/auto/*, or the folders and
// files that it is given. It needs no Xen: it reads files only, so every domain is
// "off" to it, and whether a disk is in use is for others to find out.
//
// # Syntax
//
// The files are those of xl.cfg(5), as libxlu reads them: NAME = VALUE or NAME +=
// VALUE, ended by a newline or a semicolon; a value is a string in either kind of
// quotes, a number, or a list of values over as many lines as it likes. What xl
// does not evaluate (Python expressions, other names) is an error here as there.
// Accepted beyond xl: lines that end in CR LF, and a comment that ends at the end
// of the file.
//
// Disks are those of xl-disk-configuration(5), positional and keyed, with the
// deprecated prefixes. An option that is unknown, or has a value that xl refuses,
// is a warning with file and line, and the disk is shown without it. A disk that
// cannot be made sense of is an error of its domain: were it left out quietly, a
// snapshot of "every disk" would lack it. Disks without a vdev, and further disks with
// the vdev of an earlier one, which xl refuses too, are left out with a warning.
//
// A target that is a relative path is relative to the folder of its file, or to
// /dev where the disk says phy. Targets are taken as they are where they begin with
// a protocol (nbd:…, rbd:…, as QEMU tells them apart), where a script is to
// interpret them, and where another domain serves the disk.
//
// # Faults
//
// No file hides another one. One that cannot be read, or has an error, is a domain
// with its Err, named by the name= in it or else by the file. Names are unique:
// the second of two files with one name is shown as name@file, with an error that
// says which file has the name.
package xlcfg
