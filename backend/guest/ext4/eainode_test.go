package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

// fillEAInodes makes attributes whose values have inodes of their own.
func fillEAInodes(t testing.TB, dir string) {
	set := func(name, attr string, value []byte) {
		t.Helper()
		must(t, unix.Lsetxattr(filepath.Join(dir, name), attr, value, 0))
	}
	for _, name := range []string{"sizes", "many", "shared", "odd", "acl", "big"} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644))
	}
	for _, n := range []int{0, 1, 100, 2000, 4096, 4097, 20_000, 65535, 65536} {
		set("sizes", fmt.Sprintf("user.of %d", n), content(uint64(n), n))
	}
	for i := range 30 {
		set("many", fmt.Sprintf("trusted.%d", i), content(uint64(i), 3000))
	}
	set("shared", "user.shared", content(2000, 2000))
	set("odd", "user.\xff\xfe\x80 a name", content(1, 9000))
	must(t, os.Mkdir(filepath.Join(dir, "dir"), 0o755))
	set("dir", "user.of a dir", content(3, 9000))
	for _, n := range []int{5, 59, 60, 200} {
		link := fmt.Sprintf("link %d", n)
		must(t, os.Symlink(content7(n), filepath.Join(dir, link)))
		set(link, "trusted.of a link", content(4, 9000))
	}
	// An ACL of more entries than fit elsewhere.
	acl := "u::rw,g::r,o::r,m::rwx"
	for i := range 900 {
		acl += fmt.Sprintf(",u:%d:rx", 1000+i)
	}
	command(t, "setfacl", "-m", acl, filepath.Join(dir, "acl"))
}

func TestXattr_OfInodesOfTheirOwnEqualsTheKernels(t *testing.T) {
	testneed.Loop(t)
	testneed.Tools(t, "mke2fs", "setfacl")
	for _, v := range []struct {
		name string
		args []string
	}{
		{"4 KiB blocks", []string{"-b", "4096", "-O", "ea_inode"}},
		{"without checksums", []string{"-b", "1024", "-O", "ea_inode,^metadata_csum"}},
		{"checksum seed", []string{"-b", "1024", "-O", "ea_inode,metadata_csum_seed"}},
		{"without extents", []string{"-b", "1024", "-O", "ea_inode,^extents,^64bit"}},
		{"inodes of 128 bytes", []string{"-I", "128", "-O", "ea_inode"}},
		{"inline_data", []string{"-I", "512", "-O", "ea_inode,inline_data"}},
	} {
		t.Run(v.name, func(t *testing.T) {
			path := mkfs(t, 32, false, append([]string{"-t", "ext4", "-N", "512"}, v.args...)...)
			populate(t, path, func(dir string) { fillEAInodes(t, dir) })
			if strings.Contains(v.name, "seed") {
				command(t, "tune2fs", "-U", "5eed5eed-0000-4000-8000-000000000002", path)
			}
			stats := compareWithKernel(t, path)
			if stats.Xattrs < 45 {
				t.Errorf("%+v", stats)
			}
			fs, _ := openImage(t, path)
			owned := 0
			for ino := uint64(11); ino < 512; ino++ {
				var in inode
				if fs.readInode(uint32(ino), &in) == nil && in.flags&inodeEAInode != 0 {
					owned++
					if _, err := fs.Attr(ino); !errors.Is(err, backend.ErrCorrupt) {
						t.Errorf("inode %d of an attribute: %v", ino, err)
					}
				}
			}
			if owned < 35 {
				t.Errorf("only %d inodes of attributes", owned)
			}
		})
	}
}

// eaImage is an image with one attribute in an inode, and what its entry and inodes are.
func eaImage(t testing.TB) (image []byte, file, ea inode, entry int) {
	t.Helper()
	testneed.Loop(t)
	path := mkfs(t, 8, false, "-t", "ext4", "-b", "1024", "-N", "64", "-O", "ea_inode,^metadata_csum,^has_journal")
	populate(t, path, func(dir string) {
		must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o644))
		must(t, unix.Lsetxattr(filepath.Join(dir, "file"), "user.name", content(1, 5000), 0))
	})
	fs, _ := openImage(t, path)
	must(t, fs.inode(lookup(t, fs, "file").Ino, &file))
	must(t, fs.xattrs(&file, func(x *xattr) (bool, error) { return false, fs.readInode(x.inum, &ea) }))
	image, err := os.ReadFile(path)
	must(t, err)
	entry = inodeOffset(t, fs, uint64(file.ino)) + len(file.raw) - len(file.xattrBody())
	if string(image[entry+xattrEntryBytes:][:4]) != "name" {
		t.Fatalf("no entry at %d", entry)
	}
	return image, file, ea, entry
}

// inodeOffset is where an inode lies in an image.
func inodeOffset(t testing.TB, fs backend.FS, ino uint64) int {
	t.Helper()
	x := fs.(*FS)
	table, err := x.inodeTable((ino - 1) / uint64(x.sb.inodesPerGroup))
	must(t, err)
	return int(table<<x.sb.blockBits + (ino-1)%uint64(x.sb.inodesPerGroup)*uint64(x.sb.inodeBytes))
}

func TestXattr_RefusesWrongInodesOfValues(t *testing.T) {
	good, file, in, entry := eaImage(t)
	fs, err := New().Open(inMemory(good))
	must(t, err)
	at := inodeOffset(t, fs, uint64(in.ino))
	owner := inodeOffset(t, fs, uint64(file.ino))
	r, err := fs.(*FS).mapRun(&in, 0)
	must(t, err)
	le := binary.LittleEndian
	for _, v := range []struct {
		what   string
		change func(b []byte)
		want   error
	}{
		{"nothing", func([]byte) {}, nil},
		{"the value", func(b []byte) { b[r.phys*1024] ^= 1 }, backend.ErrCorrupt},
		{"the hash of the value", func(b []byte) { b[at+8] ^= 1 }, backend.ErrCorrupt},
		{"the hash of the entry", func(b []byte) { b[entry+12] ^= 1 }, backend.ErrCorrupt},
		{"the name", func(b []byte) { b[entry+16+3] = 'f' }, backend.ErrNoAttr},
		{"a size in the entry", func(b []byte) { le.PutUint32(b[entry+8:], 4999) }, backend.ErrCorrupt},
		{"a size of 64 KiB and more", func(b []byte) { le.PutUint32(b[entry+8:], 1<<16+1) }, backend.ErrUnsupported},
		{"a size of 4 GiB", func(b []byte) { le.PutUint32(b[entry+8:], 0xffffffff) }, backend.ErrCorrupt},
		{"the inode's flag", func(b []byte) { le.PutUint32(b[at+0x20:], inodeExtents) }, backend.ErrCorrupt},
		{"the inode's type", func(b []byte) { le.PutUint16(b[at:], 0o10600) }, backend.ErrCorrupt},
		{"the inode's links", func(b []byte) { le.PutUint16(b[at+0x1a:], 0) }, backend.ErrCorrupt},
		{"attributes of the inode", func(b []byte) { le.PutUint32(b[at+0x68:], 500) }, backend.ErrCorrupt},
		{"the first extent", func(b []byte) { le.PutUint16(b[at+0x28+12+4:], 32768+5) }, backend.ErrCorrupt},
		{"no extent", func(b []byte) { le.PutUint16(b[at+0x28+2:], 0) }, backend.ErrCorrupt},
		{"inode 2", func(b []byte) { le.PutUint32(b[entry+4:], 2) }, backend.ErrCorrupt},
		{"inode 8", func(b []byte) { le.PutUint32(b[entry+4:], 8) }, backend.ErrCorrupt},
		{"no inode of it", func(b []byte) { le.PutUint32(b[entry+4:], 65) }, backend.ErrCorrupt},
		{"the owner itself", func(b []byte) { le.PutUint32(b[entry+4:], file.ino) }, backend.ErrCorrupt},
		{"the owner itself, flagged", func(b []byte) {
			le.PutUint32(b[entry+4:], file.ino)
			le.PutUint32(b[owner+0x20:], inodeExtents|inodeEAInode)
		}, backend.ErrCorrupt},
		{"the feature", func(b []byte) { b[superOffset+0x61] &^= incompatEAInode >> 8 }, backend.ErrCorrupt},
		{"made by Lustre", func(b []byte) {
			le.PutUint32(b[at+0x8:], 0)
			le.PutUint32(b[at+0x10:], file.ino)
			le.PutUint32(b[at+0x64:], file.generation)
			le.PutUint32(b[entry+12:], 12345)
		}, nil},
		{"made by Lustre for another inode", func(b []byte) {
			le.PutUint32(b[at+0x8:], 0)
			le.PutUint32(b[at+0x10:], file.ino+1)
			le.PutUint32(b[at+0x64:], file.generation)
		}, backend.ErrCorrupt},
	} {
		b := slices.Clone(good)
		v.change(b)
		fs, err := New().Open(inMemory(b))
		must(t, err)
		got, err := fs.Xattr(uint64(file.ino), "user.name")
		if v.want == nil {
			if err != nil || !slices.Equal(got, content(1, 5000)) {
				t.Errorf("%s changed: %d bytes, %v", v.what, len(got), err)
			}
		} else if !errors.Is(err, v.want) || errors.Is(err, backend.ErrStale) {
			t.Errorf("%s changed: %d bytes, %v; not %v", v.what, len(got), err, v.want)
		}
	}
}

// What the kernel says of the same changes.
func TestXattr_RefusesWhatTheKernelDoes(t *testing.T) {
	good, file, in, entry := eaImage(t)
	fs, err := New().Open(inMemory(good))
	must(t, err)
	at := inodeOffset(t, fs, uint64(in.ino))
	le := binary.LittleEndian
	for what, change := range map[string]func(b []byte){
		"nothing":               func([]byte) {},
		"the hash of the value": func(b []byte) { b[at+8] ^= 1 },
		"the hash of the entry": func(b []byte) { b[entry+12] ^= 1 },
		"the inode's flag":      func(b []byte) { le.PutUint32(b[at+0x20:], inodeExtents) },
		"a size in the entry":   func(b []byte) { le.PutUint32(b[entry+8:], 4999) },
		"signed bytes": func(b []byte) {
			b[entry+16] = 0xff
			le.PutUint32(b[entry+12:], xattrHash(b[entry+16:][:4], le.Uint32(b[at+8:]), true))
		},
		"unsigned bytes": func(b []byte) {
			b[entry+16] = 0xff
			le.PutUint32(b[entry+12:], xattrHash(b[entry+16:][:4], le.Uint32(b[at+8:]), false))
		},
		"made by Lustre": func(b []byte) {
			le.PutUint32(b[at+0x8:], 0)
			le.PutUint32(b[at+0x10:], file.ino)
			le.PutUint32(b[at+0x64:], file.generation)
		},
	} {
		t.Run(what, func(t *testing.T) {
			b := slices.Clone(good)
			change(b)
			path := filepath.Join(imageDir(t), "image")
			must(t, os.WriteFile(path, b, 0o600))
			dir, _ := mount(t, path, "ro")
			name := "user." + string(b[entry+16:][:4])
			want := make([]byte, 1<<16)
			n, wantErr := unix.Lgetxattr(filepath.Join(dir, "file"), name, want)
			fs, err := New().Open(inMemory(b))
			must(t, err)
			got, err := fs.Xattr(uint64(file.ino), name)
			if (err == nil) != (wantErr == nil) || err == nil && !slices.Equal(got, want[:n]) {
				t.Errorf("%d bytes, %v; the kernel: %d, %v", len(got), err, n, wantErr)
			}
			t.Logf("%v; the kernel: %v", err, wantErr)
		})
	}
}
