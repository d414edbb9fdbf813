package main

import (
	"os"
	"testing"

	"domfs/backend/backendtest/labneed"
)

func TestLab_ClonesWithTheHostsOwnVGNameAreReadAtOnce(t *testing.T) {
	h := newLVMHost(t)
	template := guestTemplate(t)
	h.vg(guestVG, 1, 1024) // the host's, of the guests' name
	for _, name := range []string{"one", "two"} {
		fill(t, template, h.thick(guestVG, name, guestDiskMiB))
		h.config(name, "phy:/dev/"+guestVG+"/"+name+",xvda,w")
	}
	before := labneed.Run(t, "vgs", "--noheadings", "-o", "vg_name,vg_uuid,lv_count,pv_count")
	m := h.mount()
	for _, name := range []string{"one", "two"} {
		m.snapshot(name, "s")
	}
	for _, name := range []string{"one", "two"} {
		if got := m.read("snapshots/" + name + "/s/lvm/vg0/root/files/etc/hostname"); got != "guest" {
			t.Errorf("%s: hostname is %q", name, got)
		}
		if got := m.read("snapshots/" + name + "/s/root/home/alice/notes"); got != "mine" {
			t.Errorf("%s: notes are %q", name, got)
		}
		if got := m.read("snapshots/" + name + "/s/root/boot/vmlinuz"); got != "a kernel" {
			t.Errorf("%s: kernel is %q", name, got)
		}
	}
	if vgs := labneed.Run(t, "vgs", "--noheadings", "-o", "vg_name,vg_uuid,pv_count"); len(vgs) == 0 {
		t.Error("no VG")
	}
	for _, name := range []string{"one", "two"} {
		must(t, os.Remove(m.at("snapshots", name, "s")))
	}
	if after := labneed.Run(t, "vgs", "--noheadings", "-o", "vg_name,vg_uuid,lv_count,pv_count"); after != before {
		t.Errorf("vgs said\n%s\nand now\n%s", before, after)
	}
	m.stop()
}
