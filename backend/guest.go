package backend

import (
	"io"
	"time"
)

// Content says what is on a device, in blkid's words.
type Content struct {
	Type  string // gpt, dos, ext4, LVM2_member, …; empty if unknown
	Label string // raw bytes of the guest, cut at NUL
	UUID  string
}

// Prober finds out what is on a device. Content is empty, without an error, where it
// is unknown; an error is for a device that cannot be read.
type Prober interface {
	Probe(d Device) (Content, error)
}

// Part is one part of a device that a Layout found: itself a Device.
type Part struct {
	Number int    // as the guest's kernel numbers it
	Label  string // the name that the table gives it (GPT), may be empty
	UUID   string // the partition's, lower-case
	Type   string // the table's type: a GUID, or 0x83
	Device Device // closing it does nothing
	// Err says why the part cannot be read (it reaches past the end); Device is nil then.
	Err error
}

// Layout reads a partition table.
type Layout interface {
	// Types are the Content types that the layout reads.
	Types() []string
	// Parts lists the partitions in order of their numbers. A table that is corrupt
	// beyond use is ErrCorrupt.
	Parts(d Device) ([]Part, error)
}

// PartWarner is a Layout that can tell what a reader should know of a table whose Parts it lists.
type PartWarner interface {
	// Warnings are sentences, few of them (the table at the beginning is damaged, its copy at the
	// end was read); none where Parts fails.
	Warnings(d Device) []string
}

// Filesystem opens guests' filesystems of some types.
type Filesystem interface {
	// Types are the Content types that the driver reads.
	Types() []string
	// Open reads the superblock. A feature that the driver does not know is
	// ErrUnsupported and names it. The device stays the caller's, and must outlive the FS.
	Open(d Device) (FS, error)
}

// Use is what the bytes of a device tell of whether its guest is using them.
type Use int

// The uses.
const (
	UseUnknown Use = iota // the bytes cannot tell
	Unused                // nobody writes to it: it was unmounted cleanly, or never mounted
	InUse                 // it is mounted, or was when its guest ended without unmounting it
)

// UseTeller is a Filesystem that can tell of a live device, whose bytes may change at any time, whether its guest has it
// mounted for writing. That a guest has it mounted read-only no bytes tell.
type UseTeller interface {
	// Use reads little. why is a sentence's end for InUse and UseUnknown: "is mounted". An error is for a device that
	// cannot be read.
	Use(d Device) (u Use, why string, err error)
}

// InterruptibleOpener is a Filesystem whose Open a caller can end.
type InterruptibleOpener interface {
	// OpenUntil is Open that ends with context.Canceled soon after done is closed.
	OpenUntil(done <-chan struct{}, d Device) (FS, error)
}

// FileType is the type of an inode: the S_IFMT bits of stat(2)'s st_mode.
type FileType uint32

// The types of an inode; values as in stat(2).
const (
	TypeFIFO    FileType = 0o010000
	TypeChar    FileType = 0o020000
	TypeDir     FileType = 0o040000
	TypeBlock   FileType = 0o060000
	TypeRegular FileType = 0o100000
	TypeSymlink FileType = 0o120000
	TypeSocket  FileType = 0o140000
)

// Time is a time stamp of an inode. A guest's may lie outside of what time.Time
// formats.
type Time struct {
	Sec  int64
	Nsec uint32
}

// Attr is what stat(2) says of a guest's inode.
type Attr struct {
	Ino        uint64
	Generation uint64
	Type       FileType
	Mode       uint32 // permission bits, with setuid, setgid and sticky: 0o7777
	Nlink      uint32
	UID, GID   uint32
	RdevMajor  uint32
	RdevMinor  uint32
	SizeBytes  int64
	Blocks512  int64 // units of 512 bytes, as st_blocks
	Atime      Time
	Mtime      Time
	Ctime      Time
}

// DirEntry is one name in a directory. Names are bytes, never '/' or NUL, not "." or
// "..".
type DirEntry struct {
	Name string
	Ino  uint64
	Type FileType // 0 if the directory does not say
	// Cookie is where to go on after this entry: below 1<<62, and never 0.
	Cookie uint64
	// Attr is filled in where ReadDir was asked for it and it could be read.
	Attr *Attr
}

// FSStat is what statfs(2) says of a filesystem, as the kernel computes it for the same
// filesystem.
type FSStat struct {
	BlockSize   uint32
	Blocks      uint64
	BlocksFree  uint64
	BlocksAvail uint64
	Files       uint64
	FilesFree   uint64
	NameLen     uint32
}

// FS is an open filesystem of a guest, read-only, by inode number. It is safe for
// concurrent use, its memory is bounded, and it trusts nothing that it reads: a structure
// that is wrong is ErrCorrupt, naming inode and block.
type FS interface {
	// Root is the inode number of the root directory.
	Root() uint64
	// Warnings are sentences about the filesystem's state that a reader should know (a
	// journal that was not replayed); may be empty.
	Warnings() []string
	// StatFS is cheap.
	StatFS() (FSStat, error)
	// Attr is stat. ErrStale where the inode is not in use.
	Attr(ino uint64) (Attr, error)
	// Lookup finds name in the directory dir: ErrNotExist, ErrNotDir.
	Lookup(dir uint64, name string) (Attr, error)
	// ReadDir calls emit for each entry after cookie (0: from the start) until emit
	// returns false or the directory ends. With attrs, entries carry their Attr where it can be
	// read. Parent ("..") and self are not emitted. e and e.Attr are valid until emit returns;
	// e.Name may be kept.
	ReadDir(dir uint64, cookie uint64, attrs bool, emit func(e *DirEntry) bool) error
	// Parent is the inode number of a directory's "..".
	Parent(dir uint64) (uint64, error)
	// Readlink is the target of a symbolic link, verbatim.
	Readlink(ino uint64) ([]byte, error)
	// ListXattr lists the names of extended attributes as listxattr(2) does for root.
	ListXattr(ino uint64) ([]string, error)
	// Xattr is the value of one, in the form that getxattr(2) reports (POSIX ACLs in their
	// system.posix_acl_* form): ErrNoAttr.
	Xattr(ino uint64, name string) ([]byte, error)
	// OpenFile opens a regular file's content: ErrNoKey where the guest has encrypted it.
	OpenFile(ino uint64) (File, error)
	// Close frees what the FS holds; the device stays open.
	Close() error
}

// Interruptible is an FS whose long walks of a directory a caller can end.
type Interruptible interface {
	// Until is the same FS, whose ReadDir, Lookup and Parent end with context.Canceled soon
	// after done is closed. It is valid as long as the FS, and not to be closed.
	Until(done <-chan struct{}) FS
}

// File is the content of a regular file: safe for concurrent use. ReadAt past the end is
// (n, io.EOF).
//
// Optional: Locator, Sparse.
type File interface {
	io.ReaderAt
	Size() int64
	Close() error
}

// GoTime is t as a time.Time, in UTC.
func (t Time) GoTime() time.Time { return time.Unix(t.Sec, int64(t.Nsec)).UTC() }
