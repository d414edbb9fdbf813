package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMountinfo_IsReadAsTheKernelWritesIt(t *testing.T) {
	const text = `22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
40 22 0:41 / /mnt/a\040blank\011tab\012newline\134slash rw,nosuid shared:7 master:2 - fuse.domfs domfs rw,user_id=0
41 22 0:42 /sub /mnt/none rw -  tmpfs
`
	entries, err := parseMountinfo(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []mountEntry{
		{8, 1, "/", "ext4", "/dev/sda1"},
		{0, 41, "/mnt/a blank\ttab\nnewline\\slash", "fuse.domfs", "domfs"},
		{0, 42, "/mnt/none", "tmpfs", ""},
	}
	for i := range want {
		if entries[i] != want[i] {
			t.Errorf("line %d: %+v, want %+v", i, entries[i], want[i])
		}
	}
	for _, bad := range []string{"no hyphen here at all", "1 2 x / /mnt rw - ext4 /dev/sda", "1 2 - ext4 x"} {
		if _, err := parseMountinfo(strings.NewReader(bad)); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestAllowOther_NamesTheLineThatForbidsIt(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "fuse.conf")
	tests := []struct{ text, says string }{
		{"# a comment\nuser_allow_other\n", ""},
		{"# a comment\n\n#user_allow_other\n", "line 3 of " + conf},
		{"# user_allow_other\nmount_max = 10\n", "line 1 of " + conf},
		{"mount_max = 10\n", `by a line "user_allow_other" in ` + conf},
	}
	for _, test := range tests {
		must(t, os.WriteFile(conf, []byte(test.text), 0o644))
		switch err := mayAllowOther(1000, conf); {
		case test.says == "" && err != nil:
			t.Errorf("%q: %v", test.text, err)
		case test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)):
			t.Errorf("%q: %v, want %q", test.text, err, test.says)
		}
		if err := mayAllowOther(0, conf); err != nil {
			t.Errorf("root: %v", err)
		}
	}
	must(t, os.Remove(conf))
	if err := mayAllowOther(1000, conf); err == nil {
		t.Error("without the file it is allowed")
	}
}

func TestLockFile_IsWhereItsUserMayWrite(t *testing.T) {
	for _, test := range []struct {
		uid              int
		runtimeDir, want string
	}{
		{0, "/run/user/0", "/run/domfs.lock"},
		{1000, "/run/user/1000", "/run/user/1000/domfs.lock"},
		{1000, "", "/tmp/domfs-1000.lock"},
		{1000, "relative", "/tmp/domfs-1000.lock"},
	} {
		if got := defaultLockFile(test.uid, test.runtimeDir, "/tmp"); got != test.want {
			t.Errorf("user %d, %q: %s, want %s", test.uid, test.runtimeDir, got, test.want)
		}
	}
}

func TestLockFile_OfAnotherUserIsRefused(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	must(t, claimLockFile(good, os.Geteuid()))
	must(t, claimLockFile(good, os.Geteuid()))
	if info, err := os.Stat(good); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the lock file: %v, %v", info, err)
	}
	if err := claimLockFile(good, os.Geteuid()+1); err == nil {
		t.Error("another user's file is taken")
	}
	link, fifo := filepath.Join(dir, "link"), filepath.Join(dir, "fifo")
	must(t, os.Symlink(good, link))
	must(t, unix.Mkfifo(fifo, 0o600))
	for _, path := range []string{link, fifo, dir} {
		if err := claimLockFile(path, os.Geteuid()); err == nil {
			t.Errorf("%s is taken", path)
		}
	}
}

func TestGroup_IsANameOrANumber(t *testing.T) {
	for name, want := range map[string]uint32{"0": 0, "root": 0, "4294967294": 4294967294} {
		if got, err := groupID(name); err != nil || got != want {
			t.Errorf("%s: %d, %v", name, got, err)
		}
	}
	for _, name := range []string{"", "-1", "4294967296", "no-such-group"} {
		if got, err := groupID(name); err == nil {
			t.Errorf("%q is group %d", name, got)
		}
	}
}

func TestFuseConnection_IsReadFromFdinfo(t *testing.T) {
	if n, ok := fuseConnection("pos:\t0\nflags:\t0100002\nfuse_connection:\t43\n"); !ok || n != 43 {
		t.Errorf("connection %d, %t", n, ok)
	}
	if _, ok := fuseConnection("pos:\t0\nflags:\t0100002\n"); ok {
		t.Error("an older kernel's fdinfo has a connection")
	}
}

func TestWithin_IsNotFooledByNames(t *testing.T) {
	for path, want := range map[string]bool{"/mnt": true, "/mnt/a": true, "/mnt2": false, "/": false, "/mn": false} {
		if got := within(path, "/mnt"); got != want {
			t.Errorf("%s within /mnt: %t", path, got)
		}
	}
	if !within("/anything", "/") {
		t.Error("nothing is within /")
	}
}
