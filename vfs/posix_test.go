package vfs

import (
	"os"
	"syscall"
	"testing"
	"testing/fstest"

	"domfs/backend/fake"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

// posixReasons says why a case of posixtest does not suit the tree: all of these begin by making a file
// of their own in the folder, or by changing one, and that is EROFS here; "" for those that are run. What they
// check of reading is in the tests of guests' files.
var posixReasons = map[string]string{
	"MkdirRmdir":                 "",
	"ReadDirConsistency":         "",
	"AppendWrite":                "makes a file",
	"DirSeek":                    "makes files; see TestGuest_ResumesABigDirectory",
	"DirectIO":                   "makes a file",
	"Fallocate":                  "makes a file",
	"FallocateKeepSize":          "makes a file",
	"FcntlFlockLocksFile":        "makes a file",
	"FcntlFlockSetLk":            "makes a file",
	"FdLeak":                     "makes a file; every test here compares descriptors",
	"FileBasic":                  "makes a file",
	"FileLarge":                  "makes a file; see TestGuest_ReadsAtEveryAlignment",
	"FstatDeleted":               "makes files",
	"Link":                       "makes a file; see TestGuest_ShowsWhatStatSays",
	"LinkUnlinkRename":           "makes a file",
	"LseekEnxioCheck":            "makes a file; see TestGuest_SeeksDataAndHoles",
	"LseekHoleSeeksToEOF":        "makes a file; see TestGuest_SeeksDataAndHoles",
	"NlinkZero":                  "makes a file",
	"OpenAt":                     "makes a file",
	"OpenSymlinkRace":            "makes a file",
	"ParallelFileOpen":           "makes a file",
	"ReadDirBasic":               "makes files",
	"RenameOpenDir":              "wants a rename that replaces; see TestRename_RenamesWithinADomainOnly",
	"RenameOverwriteDestExist":   "makes a file",
	"RenameOverwriteDestNoExist": "makes a file",
	"SetattrSymlink":             "makes a link",
	"SymlinkReadlink":            "makes a link",
	"Tmpfile":                    "makes a file",
	"TruncateFile":               "makes a file",
	"TruncateNoFile":             "makes a file",
	"XAttr":                      "makes a file; see TestGuest_ShowsXattrs",
	"XAttrLarge":                 "makes a file; see TestGuest_ShowsXattrs",
}

func TestPosix(t *testing.T) {
	r := newRig(t)
	r.mkdir("snapshots/web01/one")
	for name, f := range posixtest.All {
		reason, known := posixReasons[name]
		switch {
		case !known:
			t.Errorf("posixtest has a new case %s: run it, or say why not", name)
		case reason == "":
			for _, dir := range []string{"snapshots/web01", "snapshots/db01"} {
				t.Run(name+"/"+dir, func(t *testing.T) { f(t, r.path(dir)) })
			}
		}
	}
	for _, dir := range []string{"", "xenstore/web01/disks/xvda", "snapshots/web01/one/disks/xvda/p1/files", "snapshots/web01/one/disks/xvda/p1/files/odd"} {
		t.Run("ReadDirConsistency/"+dir, func(t *testing.T) { posixtest.ReadDirConsistency(t, r.path(dir)) })
	}
	// The reason holds: such a case fails at its first step.
	if err := os.WriteFile(r.path("snapshots/web01/file"), nil, 0o644); err == nil {
		t.Error("a file can be made")
	} else {
		wantErrno(t, "making a file", err, syscall.EROFS)
	}
}

// events blocks, so .domfs is not walked. TestFS reads byte by byte: the disks are small.
func TestTree_PassesFstest(t *testing.T) {
	r := newRig(t)
	g := fake.NewGuest("tiny")
	g.File("etc/hostname", []byte("tiny\n"))
	g.Link(g.Dir("etc"), "two", g.Lookup("etc/hostname"))
	g.Symlink("etc/link", "hostname")
	g.File("empty", nil)
	r.guests.Add(g)
	disk := append(fake.TableHeader(fake.TablePart{Number: 1, OffsetBytes: 100, Length: 100}), make([]byte, 100)...)
	copy(disk[100:], g.Header())
	r.AddDomain("tiny", "", map[string][]byte{"xvda": append(disk, make([]byte, 100)...)}, "xvda")
	r.AddDomain("bare", webUUID[:35]+"6", nil)
	eventually(t, "the domains are there", func() bool { _, err := os.Stat(r.path("snapshots/bare")); return err == nil })
	r.mkdir("snapshots/tiny/one")
	for dir, expected := range map[string][]string{
		// A live raw whose store cannot tell when it was written has a new mtime at each look.
		"xenstore/bare":                          {"name", "uuid", "domid", "state", "config", "last_error"},
		"xenstore/tiny/disks/xvda/p1/files":      {"etc/hostname", "etc/two"},
		"snapshots/tiny/one":                     {"created", "hold", "expires", "disks/xvda/used", "disks/xvda/p1/files/etc/two"},
		"snapshots/tiny/one/disks/xvda/p1/files": {"empty", "etc/link"},
		"stores":                                 {"fakestore/size", "fakestore/free", "fakestore/driver"},
	} {
		t.Run(dir, func(t *testing.T) {
			if err := fstest.TestFS(os.DirFS(r.path(dir)), expected...); err != nil {
				t.Error(err)
			}
		})
	}
}
