package blkid_test

import (
	"bytes"
	"encoding/binary"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"domfs/backend/backendtest/testneed"
)

const (
	id1 = "8d2e6c7b-3f1a-4b5c-9d8e-0123456789ab"
	mib = 1 << 20
)

// kind is one kind of content and how its own tool makes it.
type kind struct {
	name  string
	size  int64
	want  string // the type; the rest is blkid's to say
	build func(t testing.TB, path string)
}

func tool(name string, args ...string) func(testing.TB, string) {
	return func(t testing.TB, path string) {
		t.Helper()
		run(t, "", name, append(args, path)...)
	}
}

func table(script string, args ...string) func(testing.TB, string) {
	return func(t testing.TB, path string) {
		t.Helper()
		run(t, script, "sfdisk", append(append([]string{"-q"}, args...), path)...)
	}
}

// tree is a small folder for the tools that make an image of one.
func tree(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), bytes.Repeat([]byte("domfs "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

var kinds = []kind{
	{"ext2", 4 * mib, "ext2", tool("mke2fs", "-q", "-F", "-t", "ext2", "-L", "two", "-U", id1)},
	{"ext3", 16 * mib, "ext3", tool("mke2fs", "-q", "-F", "-t", "ext3", "-L", "sixteen-bytes-xx", "-U", id1)},
	{"ext4", 16 * mib, "ext4", tool("mke2fs", "-q", "-F", "-t", "ext4", "-L", "wüß \xff \\x", "-U", id1)},
	{"ext4 without checksums", 8 * mib, "ext4", tool("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^metadata_csum,^has_journal", "-U", id1)},
	{"ext4 tiny", 1 * mib, "ext4", tool("mke2fs", "-q", "-F", "-t", "ext4", "-L", "  lead and trail  ", "-U", id1)},
	{"ext4 64K blocks", 64 * mib, "ext4", tool("mke2fs", "-q", "-F", "-t", "ext4", "-b", "65536", "-U", id1)},
	{"ext4 test flag", 8 * mib, "", func(t testing.TB, path string) {
		tool("mke2fs", "-q", "-F", "-t", "ext4", "-E", "test_fs", "-U", id1)(t, path)
	}},
	{"ext4 broken checksum", 8 * mib, "", func(t testing.TB, path string) {
		tool("mke2fs", "-q", "-F", "-t", "ext4", "-U", id1)(t, path)
		writeAt(t, path, 1024+0x78, []byte("other"))
	}},
	{"ext journal", 16 * mib, "jbd", tool("mke2fs", "-q", "-F", "-O", "journal_dev", "-L", "log", "-U", id1)},
	{"xfs", 300 * mib, "xfs", tool("mkfs.xfs", "-q", "-L", "twelve-chars", "-m", "uuid="+id1)},
	{"xfs v4", 300 * mib, "xfs", tool("mkfs.xfs", "-q", "-m", "crc=0,uuid="+id1)},
	{"btrfs", 120 * mib, "btrfs", tool("mkfs.btrfs", "-q", "-L", "butter", "-U", id1)},
	{"vfat 12", 2 * mib, "vfat", tool("mkfs.vfat", "-F", "12", "-n", "FLOPPY", "-i", "1234abcd")},
	{"vfat floppy", 1440 << 10, "vfat", tool("mkfs.vfat", "-n", "FLOPPY", "-i", "1234abcd")},
	{"vfat 16", 32 * mib, "vfat", tool("mkfs.vfat", "-F", "16", "-n", "SIX TEEN", "-i", "00000001")},
	{"vfat 32", 64 * mib, "vfat", tool("mkfs.vfat", "-F", "32", "-n", "EFI-SYSTEM", "-i", "deadbeef")},
	{"vfat 32 no label", 64 * mib, "vfat", tool("mkfs.vfat", "-F", "32", "-i", "deadbeef")},
	{"vfat 4K sectors", 300 * mib, "vfat", tool("mkfs.vfat", "-F", "32", "-S", "4096", "-n", "BIG", "-i", "deadbeef")},
	{"vfat boot label only", 32 * mib, "vfat", func(t testing.TB, path string) {
		tool("mkfs.vfat", "-F", "16", "-i", "00000001")(t, path)
		writeAt(t, path, 0x2b, []byte("BOOTLABEL  "))
	}},
	{"exfat", 16 * mib, "exfat", tool("mkfs.exfat", "-L", "héllo")},
	{"exfat no label", 16 * mib, "exfat", tool("mkfs.exfat")},
	{"ntfs", 8 * mib, "ntfs", tool("mkntfs", "-q", "-F", "-f", "-s", "512", "-p", "0", "-H", "0", "-S", "0", "-L", "Win 𝕏 ü")},
	{"ntfs 64K clusters", 16 * mib, "ntfs", tool("mkntfs", "-q", "-F", "-f", "-c", "65536", "-s", "512", "-p", "0", "-H", "0", "-S", "0")},
	{"iso9660", 0, "iso9660", func(t testing.TB, path string) {
		run(t, "", "xorriso", "-as", "mkisofs", "-quiet", "-V", "PLAIN_ISO", "-o", path, tree(t))
	}},
	{"iso9660 joliet", 0, "iso9660", func(t testing.TB, path string) {
		run(t, "", "xorriso", "-as", "mkisofs", "-quiet", "-J", "-V", "Mixed Case label over 16", "-o", path, tree(t))
	}},
	{"iso9660 hybrid", 0, "iso9660", func(t testing.TB, path string) {
		run(t, "", "xorriso", "-as", "mkisofs", "-quiet", "-V", "HYBRID", "-o", path, tree(t))
		table("label: dos\nstart=64,size=100\n", "--wipe", "never", "--no-reread", "--no-tell-kernel")(t, path)
	}},
	{"udf hard disk", 16 * mib, "udf", tool("mkudffs", "--media-type=hd", "--label=disc üx", "--uuid=0123456789abcdef")},
	{"udf 2048", 16 * mib, "udf", tool("mkudffs", "--media-type=hd", "-b", "2048", "--label=二", "--uuid=0123456789abcdef")},
	{"udf 4096", 32 * mib, "udf", tool("mkudffs", "--media-type=hd", "-b", "4096", "--label=x", "--uuid=01234567abcdef01")},
	{"udf with half a UUID", 16 * mib, "udf", func(t testing.TB, path string) { udfUUID(t, path, "01234567WXyz89ab") }},
	{"udf with a name for a UUID", 16 * mib, "udf", func(t testing.TB, path string) { udfUUID(t, path, "VolumeSetName---") }},
	{"udf with an upper-case UUID", 16 * mib, "udf", func(t testing.TB, path string) { udfUUID(t, path, "0123456789ABCDEF") }},
	{"squashfs", 0, "squashfs", func(t testing.TB, path string) {
		os.Remove(path)
		run(t, "", "mksquashfs", tree(t), path, "-quiet", "-no-progress")
	}},
	{"erofs", 0, "erofs", func(t testing.TB, path string) {
		run(t, "", "mkfs.erofs", "-U", id1, path, tree(t))
	}},
	{"f2fs", 64 * mib, "f2fs", tool("mkfs.f2fs", "-q", "-f", "-l", "flash ü", "-U", id1)},
	{"swap", 1 * mib, "swap", tool("mkswap", "-q", "-L", "swäp", "-U", id1)},
	{"swap 8K pages", 2 * mib, "swap", tool("mkswap", "-q", "-p", "8192", "-L", "x", "-U", id1)},
	{"swap 64K pages", 2 * mib, "swap", tool("mkswap", "-q", "-p", "65536", "-L", "y", "-U", id1)},
	{"swap hibernated", 2 * mib, "swsuspend", func(t testing.TB, path string) {
		tool("mkswap", "-q", "-L", "x", "-U", id1)(t, path)
		writeAt(t, path, 4086, []byte("S1SUSPEND\x00"))
	}},
	{"swap TuxOnIce", 2 * mib, "swsuspend", func(t testing.TB, path string) {
		tool("mkswap", "-q", "-L", "x", "-U", id1)(t, path)
		writeAt(t, path, 0, []byte("\xed\xc3\x02\xe9\x98\x56\xe5\x0c"))
	}},
	{"LUKS1", 4 * mib, "crypto_LUKS", func(t testing.TB, path string) { luks(t, path, "luks1") }},
	{"LUKS2", 17 * mib, "crypto_LUKS", func(t testing.TB, path string) { luks(t, path, "luks2", "--label", "sécret") }},
	{"LUKS2 second header only", 17 * mib, "crypto_LUKS", func(t testing.TB, path string) {
		luks(t, path, "luks2", "--label", "second")
		writeAt(t, path, 0, make([]byte, 16<<10))
	}},
	{"verity", 1 * mib, "DM_verity_hash", func(t testing.TB, path string) {
		data := newImage(t, 1*mib)
		run(t, "", "veritysetup", "format", "--uuid="+id1, data, path)
	}},
	{"reiserfs", 40 * mib, "reiserfs", tool("mkfs.reiserfs", "-q", "-f", "-l", "hans", "-u", id1)},
	{"jfs", 16 * mib, "jfs", tool("mkfs.jfs", "-q", "-L", "jay")},
	{"nilfs2", 130 * mib, "nilfs2", tool("mkfs.nilfs2", "-q", "-L", "log")},
	{"md 1.0", 4 * mib, "linux_raid_member", func(t testing.TB, path string) { md1(t, path, 4*mib-0x2000) }},
	{"md 1.1", 4 * mib, "linux_raid_member", func(t testing.TB, path string) { md1(t, path, 0) }},
	{"md 1.2", 4 * mib, "linux_raid_member", func(t testing.TB, path string) { md1(t, path, 4096) }},
	{"md 1.2 elsewhere", 4 * mib, "", func(t testing.TB, path string) { md1(t, path, 8192) }},
	{"md 1.2 over ext4", 4 * mib, "linux_raid_member", func(t testing.TB, path string) {
		tool("mke2fs", "-q", "-F", "-t", "ext4")(t, path)
		md1(t, path, 4096)
	}},
	{"md 0.90", 4 * mib, "linux_raid_member", func(t testing.TB, path string) { md0(t, path, 4*mib-64<<10, binary.LittleEndian) }},
	{"md 0.90 big-endian, odd size", 4*mib + 12345, "linux_raid_member", func(t testing.TB, path string) { md0(t, path, 4*mib-64<<10, binary.BigEndian) }},
	{"md 0.90 of the last partition", 4 * mib, "dos", func(t testing.TB, path string) {
		table("label: dos\nlabel-id: 0x12345678\nstart=2048,type=fd\n")(t, path)
		md0(t, path, 4*mib-64<<10, binary.LittleEndian)
	}},
	{"bcache", 4 * mib, "bcache", func(t testing.TB, path string) {
		b := make([]byte, 4096)
		binary.LittleEndian.PutUint64(b[8:], 8)
		copy(b[24:], "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81")
		copy(b[40:], bytes.Repeat([]byte{0x5a}, 16))
		binary.LittleEndian.PutUint16(b[192:], 1)
		writeAt(t, path, 4096, b)
	}},
	{"zfs", 64 * mib, "zfs_member", func(t testing.TB, path string) {
		for _, at := range []int64{0, 256 << 10, 63<<20 + 512<<10, 63<<20 + 768<<10} {
			zfsLabel(t, path, at)
		}
	}},
	{"LVM2", 8 * mib, "LVM2_member", physicalVolume},
	{"LVM2 with a boot loader", 8 * mib, "LVM2_member", func(t testing.TB, path string) {
		physicalVolume(t, path)
		writeAt(t, path, 0, []byte("\xeb\x63\x90"))
		writeAt(t, path, 510, []byte{0x55, 0xaa})
	}},
	{"dos over LVM2", 8 * mib, "dos", func(t testing.TB, path string) {
		physicalVolume(t, path)
		table("label: dos\nlabel-id: 0x0badcafe\n,,\n", "--wipe", "never")(t, path)
	}},
	{"LVM2 with a wrong checksum", 8 * mib, "", func(t testing.TB, path string) {
		physicalVolume(t, path)
		writeAt(t, path, 512+40, []byte("x"))
	}},
	{"BitLocker", 4 * mib, "BitLocker", func(t testing.TB, path string) {
		b := make([]byte, 512)
		copy(b, "\xeb\x58\x90-FVE-FS-")
		binary.LittleEndian.PutUint64(b[176:], mib)
		copy(b[510:], "\x55\xaa")
		writeAt(t, path, 0, b)
		writeAt(t, path, mib, []byte("-FVE-FS-"))
	}},
	{"device-mapper snapshot", 4 * mib, "DM_snapshot_cow", func(t testing.TB, path string) { writeAt(t, path, 0, []byte("SnAp")) }},
	{"dm-integrity", 4 * mib, "DM_integrity", func(t testing.TB, path string) { writeAt(t, path, 0, []byte("integrt\x00\x01")) }},

	{"dos", 8 * mib, "dos", table("label: dos\nlabel-id: 0x0badcafe\n,2M\n,,E\n,1M\n,,\n")},
	{"dos without id", 8 * mib, "dos", func(t testing.TB, path string) {
		table("label: dos\n,,\n")(t, path)
		writeAt(t, path, 440, make([]byte, 4))
	}},
	{"dos without partitions", 8 * mib, "dos", table("label: dos\nlabel-id: 0x0badcafe\n")},
	{"dos tiny", 8192, "dos", table("label: dos\nlabel-id: 0x0badcafe\nstart=1,size=10\n")},
	{"dos of three sectors", 1536, "dos", func(t testing.TB, path string) {
		writeAt(t, path, 510, []byte{0x55, 0xaa})
		writeAt(t, path, 440, []byte{1, 2, 3, 4})
	}},
	{"dos with a wrong boot flag", 8 * mib, "", func(t testing.TB, path string) {
		table("label: dos\n,,\n")(t, path)
		writeAt(t, path, 446+16, []byte{0x42})
	}},
	{"dos beside ext4", 8 * mib, "ext4", func(t testing.TB, path string) {
		tool("mke2fs", "-q", "-F", "-t", "ext4", "-U", id1)(t, path)
		table("label: dos\n,,\n", "--wipe", "never")(t, path)
	}},
	{"gpt", 8 * mib, "gpt", table("label: gpt\nlabel-id: " + id1 + "\n,2M\n,,\n")},
	{"gpt tiny", 1 * mib, "gpt", table("label: gpt\nlabel-id: " + id1 + "\nstart=40,size=100\n")},
	{"gpt hybrid", 8 * mib, "gpt", func(t testing.TB, path string) {
		table("label: gpt\nlabel-id: "+id1+"\n,2M\n,,\n")(t, path)
		run(t, "", "sgdisk", "-h", "1:2", path)
	}},
	{"gpt without primary", 8 * mib, "gpt", func(t testing.TB, path string) {
		table("label: gpt\nlabel-id: "+id1+"\n,2M\n,,\n")(t, path)
		writeAt(t, path, 512, make([]byte, 512))
	}},
	{"gpt with broken primary entries", 8 * mib, "gpt", func(t testing.TB, path string) {
		table("label: gpt\nlabel-id: "+id1+"\n,2M\n,,\n")(t, path)
		writeAt(t, path, 1024+56, []byte("XXXX"))
	}},
	{"gpt without backup", 8 * mib, "gpt", func(t testing.TB, path string) {
		table("label: gpt\nlabel-id: "+id1+"\n,2M\n,,\n")(t, path)
		writeAt(t, path, 8*mib-512, make([]byte, 512))
	}},
	{"gpt with both headers broken", 8 * mib, "PMBR", func(t testing.TB, path string) {
		table("label: gpt\nlabel-id: "+id1+"\n,2M\n,,\n")(t, path)
		writeAt(t, path, 8*mib-512, make([]byte, 512))
		writeAt(t, path, 512+60, []byte("X"))
	}},
	{"gpt without MBR", 8 * mib, "", func(t testing.TB, path string) {
		table("label: gpt\nlabel-id: "+id1+"\n,2M\n,,\n")(t, path)
		writeAt(t, path, 0, make([]byte, 512))
	}},
	{"gpt grown", 16 * mib, "gpt", func(t testing.TB, path string) {
		os.Truncate(path, 8*mib)
		table("label: gpt\nlabel-id: "+id1+"\n,2M\n,,\n")(t, path)
		os.Truncate(path, 16*mib)
	}},

	{"two filesystems", 8 * mib, "", func(t testing.TB, path string) { // ambiguous
		tool("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-U", id1)(t, path)
		tool("mkswap", "-q", "-f", "-p", "65536")(t, path)
		tool("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-U", id1)(t, path)
		writeAt(t, path, 65526, []byte("SWAP-SPACE"))
	}},
	{"wiped", 8 * mib, "", func(t testing.TB, path string) {
		tool("mke2fs", "-q", "-F", "-t", "ext4", "-U", id1)(t, path)
		run(t, "", "wipefs", "-qa", path)
	}},
	{"random", 4 * mib, "", func(t testing.TB, path string) {
		b := make([]byte, 4*mib)
		rand.New(rand.NewSource(1)).Read(b)
		writeAt(t, path, 0, b)
	}},
	{"zero", 4 * mib, "", func(testing.TB, string) {}},
	{"one sector of zero", 512, "", func(testing.TB, string) {}},
	{"511 bytes", 511, "", func(testing.TB, string) {}},
	{"empty", 0, "", func(testing.TB, string) {}},
}

func luks(t testing.TB, path, version string, args ...string) {
	t.Helper()
	run(t, "secret", "cryptsetup", append(append([]string{"luksFormat", "-q", "--type", version, "--uuid", id1,
		"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", "-"}, args...), path)...)
}

// udfUUID makes a UDF whose volume set identifier begins otherwise than mkudffs lets it.
func udfUUID(t testing.TB, path, id string) {
	t.Helper()
	const made = "0123456789abcdef"
	tool("mkudffs", "--media-type=hd", "--label=x", "--uuid="+made)(t, path)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	writeAt(t, path, 0, bytes.ReplaceAll(b, []byte(made), []byte(id)))
}

// physicalVolume makes one with lvm itself, which wants a device.
func physicalVolume(t testing.TB, path string) {
	t.Helper()
	testneed.Loop(t)
	testneed.Tools(t, "lvm")
	dev := strings.TrimSpace(run(t, "", "losetup", "-f", "--show", path))
	defer run(t, "", "losetup", "-d", dev)
	run(t, "", "lvm", "pvcreate", "--driverloaded", "n", "-y", "-qq",
		"--config", `devices { filter=["a|^`+dev+`$|","r|.*|"] use_devicesfile=0 scan=["/dev"] } global { use_lvmlockd=0 } backup { backup=0 archive=0 }`,
		"-u", "Abcdef-0123-4567-89ab-cdef-GHIJ-klmnop", "--norestorefile", dev)
}

// zfsLabel writes what identifies a vdev in a label at off: a name-value list in XDR, and uberblocks.
func zfsLabel(t testing.TB, path string, off int64) {
	t.Helper()
	list := []byte{1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}
	pair := func(name string, value []byte) {
		padded := (len(name) + 3) &^ 3
		size := 12 + padded + len(value)
		list = binary.BigEndian.AppendUint32(list, uint32(size))
		list = binary.BigEndian.AppendUint32(list, uint32(size))
		list = binary.BigEndian.AppendUint32(list, uint32(len(name)))
		list = append(append(list, name...), make([]byte, padded-len(name))...)
		list = append(list, value...)
	}
	number := func(name string, v uint64) {
		pair(name, binary.BigEndian.AppendUint64([]byte{0, 0, 0, 8, 0, 0, 0, 1}, v))
	}
	number("version", 5000)
	pair("name", append([]byte{0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0, 4}, "tank"...))
	number("state", 0)
	number("txg", 4)
	number("pool_guid", 1234567890123456789)
	number("guid", 9876543210987654321)
	list = append(list, make([]byte, 8)...)
	writeAt(t, path, off+16<<10, list)
	for i := range int64(8) {
		b := make([]byte, 1024)
		binary.LittleEndian.PutUint64(b, 0x00bab10c)
		writeAt(t, path, off+128<<10+i*1024, b)
	}
}

// md1 writes a version 1 superblock as mdadm does, who wants a device.
func md1(t testing.TB, path string, off int64) {
	t.Helper()
	le := binary.LittleEndian
	b := make([]byte, 256+2*128)
	le.PutUint32(b[0:], 0xa92b4efc)
	le.PutUint32(b[4:], 1)
	copy(b[16:], "0123456789abcdef")
	copy(b[32:], "host:array")
	le.PutUint32(b[72:], 1)     // level
	le.PutUint64(b[80:], 2048)  // size
	le.PutUint32(b[92:], 2)     // disks
	le.PutUint64(b[128:], 2048) // data offset
	le.PutUint64(b[136:], 4096) // data size
	at := off
	if off == 8192 {
		at = 4096 // a copy of what belongs at 4096
	}
	le.PutUint64(b[144:], uint64(at)/512)
	copy(b[168:], "device-uuid-here")
	le.PutUint32(b[220:], 128) // roles
	var sum uint64
	for i := 0; i < len(b); i += 4 {
		sum += uint64(le.Uint32(b[i:]))
	}
	le.PutUint32(b[216:], uint32(sum>>32)+uint32(sum))
	writeAt(t, path, off, b)
}

// md0 writes a version 0.90 superblock.
func md0(t testing.TB, path string, off int64, order binary.ByteOrder) {
	t.Helper()
	b := make([]byte, 4096)
	for i, v := range []uint32{0xa92b4efc, 0, 90, 0, 0, 0x01020304, 0, 1, 2048, 2, 2, 0, 0, 0x05060708, 0x090a0b0c, 0x0d0e0f10} {
		order.PutUint32(b[4*i:], v)
	}
	writeAt(t, path, off, b)
}

func TestProbe_SaysWhatBlkidSays(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			path := built(t, k)
			if said := sameAsBlkid(t, path); k.want != "" && said.Type != k.want {
				t.Errorf("the image is not what it should be: blkid says %+q, want %s", said, k.want)
			}
		})
	}
}
