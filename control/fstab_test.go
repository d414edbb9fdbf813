package control

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"
)

// fstabSeeds are lines as installers and people write them, and such as nobody should.
const fstabSeeds = `# /etc/fstab: static file system information.
#
UUID=0a0b0c0d-1111-2222-3333-444455556666 /               ext4    errors=remount-ro 0       1
/dev/mapper/vg0-home	/home	ext4	defaults,nodev	0	2
  LABEL="my\040data"   /srv/my\040data  ext4  noauto,x-systemd.automount 0 0
PARTUUID='7ab1e000-01' /boot ext2
# a comment
/swapfile none swap sw 0 0
tmpfs /tmp tmpfs size=1G 0 0
server:/export /mnt/nfs nfs _netdev 0 0
//server/share /mnt/cifs cifs credentials=/root/c 0 0
/srv/a /srv/b none bind 0 0
/dev/xvdb1 relative ext4 defaults 0 0
short line
/dev/sdb1 /a\134b\011c\043 auto nofail,ro
/dev/sdc1 /tail ext4 defaults 0 0`

func TestParseFstab_ReadsWhatMountReads(t *testing.T) {
	testneed.Tools(t, "findmnt")
	path := filepath.Join(t.TempDir(), "fstab")
	if err := os.WriteFile(path, []byte(fstabSeeds+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	// findmnt shows TARGET, SOURCE, FSTYPE and OPTIONS with \xNN for what is not printable, fields in quotes.
	cmd := exec.Command("findmnt", "--tab-file", path, "--fstab", "--noheadings", "--pairs", "-o", "TARGET,SOURCE,FSTYPE,OPTIONS")
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("findmnt: %v: %s", err, out)
	}
	entries, cut := parseFstab([]byte(fstabSeeds))
	if cut {
		t.Error("it is said to be cut")
	}
	var got []string
	for _, e := range entries {
		got = append(got, fmt.Sprintf("TARGET=%s SOURCE=%s FSTYPE=%s OPTIONS=%s", pairQuote(e.file), pairQuote(e.spec), pairQuote(e.fstype), pairQuote(strings.Join(e.options, ","))))
	}
	var want []string
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "findmnt: ") || strings.Contains(line, `TARGET="relative"`) || strings.Contains(line, `TARGET="none"`) {
			continue // nothing is mounted there
		}
		want = append(want, line)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nfindmnt says\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// pairQuote writes a value as findmnt --pairs does.
func pairQuote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		switch c := s[i]; {
		case c < ' ' || c == '"' || c == '\\' || c == '`' || c == '$' || c >= 0x7f:
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func TestParseFstab_IsBounded(t *testing.T) {
	line := "/dev/xvda1 /a ext4 defaults 0 0\n"
	entries, cut := parseFstab([]byte(strings.Repeat(line, maxFstabEntries+1)))
	if len(entries) != maxFstabEntries || !cut {
		t.Errorf("%d entries, cut: %t", len(entries), cut)
	}
	long := strings.Repeat("#", maxFstabBytes-len(line)-10) + "\n" + line + "/dev/xvdb1 /beyond ext4 defaults\n"
	entries, cut = parseFstab([]byte(long))
	if len(entries) != 1 || !cut {
		t.Errorf("%d entries, cut: %t: half a line counts for nothing", len(entries), cut)
	}
	entries, _ = parseFstab([]byte("/dev/xvda1 /" + strings.Repeat("x", maxPathBytes) + " ext4\n/dev/xvda1\x00 /nul ext4\n"))
	if len(entries) != 0 {
		t.Errorf("%d entries of lines that no kernel takes", len(entries))
	}
}

func FuzzParseFstab(f *testing.F) {
	f.Add([]byte(fstabSeeds))
	for line := range strings.Lines(fstabSeeds) {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		entries, _ := parseFstab(text)
		if len(entries) > maxFstabEntries {
			t.Fatalf("%d entries", len(entries))
		}
		a := &assembly{seen: []seenVolume{{ref: VolumeRef{VDev: "xvda", Path: "p1"}, plain: true}, {ref: VolumeRef{Path: "lvm/a/b"}, group: "a", name: "b", lvmUUID: "x"}, {ref: VolumeRef{VDev: "hda1"}}}}
		for _, e := range entries {
			if !strings.HasPrefix(e.file, "/") || len(e.file) >= maxPathBytes || strings.ContainsRune(e.spec+e.file, 0) {
				t.Fatalf("entry %+v", e)
			}
			a.named(e.spec)
			e.depth()
			e.atBoot()
			e.isBind()
		}
		if bytes.HasPrefix(text, []byte("#")) && !bytes.ContainsAny(text, "\n") && len(entries) > 0 {
			t.Fatal("a comment is no entry")
		}
	})
}

func TestNamed_FindsVolumesByAllTheirNames(t *testing.T) {
	disk := func(vdev, path string) seenVolume {
		return seenVolume{ref: VolumeRef{VDev: vdev, Path: path}, plain: true}
	}
	p1 := disk("xvda", "p1")
	p1.content, p1.partUUID, p1.partName = backend.Content{UUID: "AbCd-1234", Label: "my data"}, "7ab1e000-01", "EFI System"
	root := seenVolume{ref: VolumeRef{Path: "lvm/my-vg/root"}, group: "my-vg", name: "root", lvmUUID: "AAABBB", plain: true, content: backend.Content{UUID: "same"}}
	copied := seenVolume{ref: VolumeRef{Path: "lvm/my-vg/a-b"}, group: "my-vg", name: "a-b", content: backend.Content{UUID: "same"}}
	a := &assembly{seen: []seenVolume{disk("xvda", ""), p1, disk("xvda", "p12"), disk("xvda", "p2/p5"), disk("sda1", ""), disk("hdb", "p3"), disk("nvme0n1", "p2"), disk("vdb", "p3"), copied, root}}
	for spec, want := range map[string]string{
		"UUID=abcd-1234":  "xvda/p1",
		"UUID=":           "",
		`LABEL="my data"`: "xvda/p1", "PARTUUID='7ab1e000-01'": "xvda/p1", `LABEL="my data`: "", `LABEL="`: "",
		"LABEL=my data":                        "xvda/p1",
		"LABEL=My data":                        "",
		"PARTUUID=7AB1E000-01":                 "xvda/p1",
		"PARTLABEL=EFI System":                 "xvda/p1",
		"ID=x":                                 "",
		"/dev/disk/by-uuid/AbCd-1234":          "xvda/p1",
		`/dev/disk/by-label/my\x20data`:        "xvda/p1",
		"/dev/disk/by-partuuid/7ab1e000-01":    "xvda/p1",
		`/dev/disk/by-partlabel/EFI\x20System`: "xvda/p1",
		"/dev/disk/by-path/pci-0000:00:1f.2":   "",
		"/dev/disk/by-id/dm-name-my--vg-root":  "lvm/my-vg/root",
		"/dev/disk/by-id/dm-uuid-LVM-AAABBB":   "lvm/my-vg/root",
		"/dev/disk/by-id/dm-uuid-LVM-":         "",
		"/dev/mapper/my--vg-root":              "lvm/my-vg/root",
		"/dev/mapper/my--vg-a--b":              "lvm/my-vg/a-b",
		"/dev/mapper/my-vg-root":               "",
		"/dev/my-vg/root":                      "lvm/my-vg/root",
		"/dev/my-vg/a-b":                       "lvm/my-vg/a-b",
		"UUID=same":                            "lvm/my-vg/root lvm/my-vg/a-b", // what may be a copy comes last
		"/dev/xvda":                            "xvda",
		"/dev/xvda1":                           "xvda/p1",
		"/dev/xvda12":                          "xvda/p12",
		"/dev/xvda5":                           "",
		"/dev/sda":                             "xvda",
		"/dev/hda12":                           "xvda/p12",
		"/dev/vda1":                            "xvda/p1",
		"/dev/sda1":                            "sda1",   // its own name goes before xvda's
		"/dev/xvdb3":                           "hdb/p3", // hdb goes before vdb
		"/dev/vdb3":                            "vdb/p3",
		"/dev/nvme0n1p2":                       "nvme0n1/p2",
		"/dev/nvme0n12":                        "",
		"/dev/":                                "",
		"/dev/xvd":                             "",
		"xvda1":                                "",
		"":                                     "",
	} {
		var got []string
		for _, s := range a.named(spec) {
			got = append(got, s.ref.member())
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s means %q, want %q", spec, got, want)
		}
	}
}
