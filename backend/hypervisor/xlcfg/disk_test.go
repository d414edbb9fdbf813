package xlcfg

import (
	"fmt"
	"strings"
	"testing"

	"domfs/backend"
)

func TestDisk_MeansWhatTheManualSays(t *testing.T) {
	rw, ro := backend.ReadWrite, backend.ReadOnly
	disk := func(vdev, source string) backend.Disk {
		return backend.Disk{VDev: vdev, Source: source, Format: "raw", Mode: rw}
	}
	with := func(d backend.Disk, f func(d *backend.Disk)) backend.Disk { f(&d); return d }
	lv := disk("hda", "/dev/vg/guest-volume")
	iso := with(disk("hdc", "/srv/image.iso"), func(d *backend.Disk) { d.Mode, d.CDROM = ro, true })
	empty := backend.Disk{VDev: "hdc", Mode: ro, CDROM: true}
	phy := func(d backend.Disk) backend.Disk { d.Backend = "phy"; return d }
	tap := func(d backend.Disk) backend.Disk { d.Backend = "tap"; return d }
	script := func(d backend.Disk, s string) backend.Disk { d.Script = s; return d }
	format := func(d backend.Disk, f string) backend.Disk { d.Format = f; return d }

	for spec, want := range map[string]backend.Disk{
		// The manual's equivalent ones.
		"/dev/vg/guest-volume,,hda":                                             lv,
		"/dev/vg/guest-volume,raw,hda,rw":                                       lv,
		"format=raw, vdev=hda, access=rw, target=/dev/vg/guest-volume":          lv,
		"raw:/dev/vg/guest-volume,hda,w":                                        lv,
		"/srv/image.iso,,hdc,cdrom":                                             iso,
		"/srv/image.iso,,hdc,,cdrom":                                            iso,
		"/srv/image.iso,raw,hdc,devtype=cdrom":                                  iso,
		"format=raw, vdev=hdc, access=ro, devtype=cdrom, target=/srv/image.iso": iso,
		"raw:/srv/image.iso,hdc:cdrom,ro":                                       iso,
		",hdc:cdrom,r":                                                          empty,
		",,hdc,cdrom":                                                           empty,
		"vdev=hdc,cdrom":                                                        empty,
		"devtype=cdrom,vdev=hdc,target=":                                        empty,
		// Relative targets: beside the file, or in /dev.
		"a.img,raw,xvda":                               disk("xvda", "/srv/xen/a.img"),
		"../img/a.img,raw,xvda":                        disk("xvda", "/srv/img/a.img"),
		"file:a.img,xvda,w":                            disk("xvda", "/srv/xen/a.img"),
		"file:/srv/a.img,ioemu:xvda,w":                 disk("xvda", "/srv/a.img"),
		"tap:aio:a.img,xvda,w":                         tap(disk("xvda", "/srv/xen/a.img")),
		"phy:vg/lv,xvda,w":                             phy(disk("xvda", "/dev/vg/lv")),
		"phy:/dev/vg/lv,xvda,w":                        phy(disk("xvda", "/dev/vg/lv")),
		"vg/lv,raw,xvda,backendtype=phy":               phy(disk("xvda", "/dev/vg/lv")),
		"vdev=xvda,backendtype=phy,target=vg/lv":       phy(disk("xvda", "/dev/vg/lv")),
		"format=qcow2,vdev=xvda,target=a,b=c, d.qcow2": format(disk("xvda", "/srv/xen/a,b=c, d.qcow2"), "qcow2"),
		"vdev=xvda,target=./a:b":                       disk("xvda", "/srv/xen/a:b"),
		"vdev=xvda,target=rbd:pool/image:conf=/x,y":    disk("xvda", "rbd:pool/image:conf=/x,y"),
		"vdev=xvda,target=nbd://h:1/x":                 disk("xvda", "nbd://h:1/x"),
		// What serves it.
		"tap2:vhd:/a,xvda,r":                          with(tap(disk("xvda", "/a")), func(d *backend.Disk) { d.Format, d.Mode = "vhd", ro }),
		"tap:qcow2:/a,xvda,w":                         format(tap(disk("xvda", "/a")), "qcow2"),
		"/a,qed,xvda,backendtype=qdisk":               with(disk("xvda", "/a"), func(d *backend.Disk) { d.Format, d.Backend = "qed", "qdisk" }),
		"drbd:web,xvda,w":                             script(disk("xvda", "web"), "block-drbd"),
		"iscsi:iqn.2001-05.com.example:disk,xvda,w":   script(disk("xvda", "iqn.2001-05.com.example:disk"), "block-iscsi"),
		"script=/opt/block,vdev=xvda,target=any=,one": script(disk("xvda", "any=,one"), "/opt/block"),
		"images/a,raw,xvda,backend=storage":           with(disk("xvda", "images/a"), func(d *backend.Disk) { d.BackendDomain = "storage" }),
		"images/a,raw,xvda,backend=0":                 disk("xvda", "/srv/xen/images/a"),
		"/a,raw,xvda,grant_usage=1,trusted,discard":   disk("xvda", "/a"),
	} {
		got, err := parseDisk(spec, "/srv/xen", func(format string, args ...any) {
			t.Errorf("%q: warning: %s", spec, fmt.Sprintf(format, args...))
		})
		if err != nil {
			t.Errorf("%q: %v", spec, err)
		} else if got != want {
			t.Errorf("%q is\n%+v, want\n%+v", spec, got, want)
		}
	}
}

func TestDisk_IsShownInSpiteOfAFaultyOption(t *testing.T) {
	want := backend.Disk{VDev: "xvda", Source: "/a", Format: "raw", Mode: backend.ReadWrite}
	for spec, warning := range map[string]string{
		"/a,raw,xvda,frobnicate=yes":       `unknown disk option frobnicate="yes"`,
		"frobnicate=,/a,raw,xvda":          "unknown disk option frobnicate",
		"/a,raw,xvda,w!":                   "xend's",
		"/a,raw,xvda,rx":                   `unknown access "rx"`,
		"/a,raw,xvda,access=0":             `unknown access "0"`,
		"/a,raw,xvda,devtype=tape":         "devtype",
		"/a,raw,xvda:tape":                 "device type",
		"/a,raw,xvda,specification=nvme":   "specification",
		"/a,raw,xvda,colo-port=99999":      "colo-port",
		"/a,raw,xvda,grant_usage=maybe":    "grant_usage",
		"/a,raw,xvda,vdev=xvdb":            "vdev is given twice",
		"/a,raw,xvda,format=qcow2":         "format is given twice",
		"/a,raw,xvda,target=/b":            "target is given twice",
		"colo-host=a,colo-host=b,/a,,xvda": "colo-host is given twice",
	} {
		var warnings []string
		got, err := parseDisk(spec, "/", func(format string, args ...any) { warnings = append(warnings, fmt.Sprintf(format, args...)) })
		if err != nil || got != want {
			t.Errorf("%q is %+v, %v; want %+v", spec, got, err, want)
		}
		if len(warnings) != 1 || !strings.Contains(warnings[0], warning) {
			t.Errorf("%q: warnings %q, want one with %q", spec, warnings, warning)
		}
	}
}

// A format that xl does not know must reach no store as raw.
func TestDisk_NeverTakesAnUnknownFormatForRaw(t *testing.T) {
	for spec, format := range map[string]string{
		"vmdk:/a,xvda,w":           "vmdk",
		"/a,vmdk,xvda,w":           "vmdk",
		"format=vhdx,vdev=xvda,/a": "vhdx",
		"qed:/a,xvda,w":            "qed",
	} {
		warnings := 0
		got, err := parseDisk(spec, "/", func(string, ...any) { warnings++ })
		if err != nil || got.Format != format || got.Source != "/a" || warnings != 1 {
			t.Errorf("%q is %+v, %v, %d warnings; want format %s and one warning", spec, got, err, warnings, format)
		}
	}
}
