package vfs

import (
	"strings"

	"domfs/backend"
	"domfs/backend/fake"
)

// Names that a careless reader gets wrong.
var oddNames = []string{"new\nline", "back\\slash", "\xff\xfe not UTF-8", "-rf", " ", "...", "100%", "%2F", "a%2", strings.Repeat("n", 255), "日本"}

// fillGuest makes a filesystem with something of everything.
func fillGuest(g *fake.Guest) {
	g.File("etc/hostname", []byte("web01\n")).Xattrs = map[string]string{"user.note": "hello", "user.empty": "", "user.big": strings.Repeat("x", 60000), "security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
	hard := g.File("hard/one", []byte("linked\n"))
	g.Link(g.Dir("hard"), "two", hard)
	g.Link(g.Dir("etc"), "three", hard)
	g.Symlink("links/absolute", "/etc/passwd")
	g.Symlink("links/relative", "../etc/hostname")
	g.Symlink("links/odd", "no\xff such//./place\n")
	g.Symlink("links/long", strings.Repeat("l", 4095))
	g.Special("dev/null", backend.TypeChar, 1, 3)
	g.Special("dev/wide", backend.TypeBlock, 4095, 0xfffff)
	g.Special("dev/sda1", backend.TypeBlock, 8, 1)
	g.Special("run/pipe", backend.TypeFIFO, 0, 0)
	g.Special("run/socket", backend.TypeSocket, 0, 0)
	old := g.File("times/old", nil)
	old.Mtime, old.Atime, old.Ctime = backend.Time{Sec: -1234567890, Nsec: 987654321}, backend.Time{Sec: -1}, backend.Time{Sec: -2147483649, Nsec: 1}
	far := g.File("times/far", nil)
	far.Mtime, far.Atime, far.Ctime = backend.Time{Sec: 1<<33 + 5, Nsec: 999999999}, backend.Time{Sec: 1 << 32, Nsec: 7}, backend.Time{Sec: 15032385535, Nsec: 123}
	set := g.File("modes/setuid", []byte("#!"))
	set.Mode, set.UID, set.GID = 0o6755, 4_000_000_000, 100_000
	g.Dir("modes/sticky").Mode = 0o1777
	secret := g.File("modes/secret", []byte("secret"))
	secret.Mode, secret.UID, secret.GID = 0, 1000, 1000
	for i, name := range oddNames {
		g.Link(g.Dir("odd"), name, g.File("hidden/"+string(rune('a'+i)), []byte(name)))
	}
	g.Link(g.Dir("damaged"), "a/b", g.File("hidden/slash", []byte("slash")))
	g.Link(g.Dir("damaged"), "nul\x00byte", g.File("hidden/nul", []byte("nul")))
	g.Link(g.Dir("damaged"), "/", g.File("hidden/root", []byte("root")))
	g.File("data/big", pattern(3*MiB+123, 1))
	g.File("data/empty", nil)
	sparse := g.File("data/sparse", nil)
	sparse.SizeBytes, sparse.Blocks512 = 5*MiB+17, 24
	sparse.Runs = []fake.GuestRun{{OffsetBytes: MiB, Data: pattern(4096, 2)}, {OffsetBytes: 3 * MiB, Data: pattern(8192, 3)}}
	hole := g.File("data/hole", nil)
	hole.SizeBytes, hole.Blocks512, hole.Runs = 1<<40, 0, []fake.GuestRun{}
	onDisk := g.File("data/on-disk", nil)
	onDisk.Extent = &fake.TablePart{OffsetBytes: 512 << 10, Length: 300<<10 + 5}
	onDisk.SizeBytes, onDisk.Blocks512 = 300<<10+5, 608
	g.File("data/corrupt", []byte("never to be read"))
	g.Dir("corrupt-dir")
}
