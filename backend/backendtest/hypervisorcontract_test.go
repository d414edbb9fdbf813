package backendtest

import (
	"errors"
	"strings"
	"testing"

	"domfs/backend"
)

func TestDomainFaults_FindsEachBrokenPromise(t *testing.T) {
	good := func() backend.Domain {
		return backend.Domain{Name: "web", ID: -1, State: backend.StateOff, UUID: "01234567-89ab-cdef-0123-456789abcdef", Config: "/c.cfg",
			Disks: []backend.Disk{
				{VDev: "xvda", Source: "/a.img", Format: "raw", Mode: backend.ReadWrite},
				{VDev: "hdc", CDROM: true, Mode: backend.ReadOnly},
				{VDev: "xvdb", Source: "web", Script: "block-drbd", Format: "raw", Mode: backend.ReadWrite},
				{VDev: "xvdc", Source: "rbd:a/b", Format: "raw", Mode: backend.ReadWrite},
			}}
	}
	if faults := domainFaults([]backend.Domain{good()}); len(faults) > 0 {
		t.Fatalf("a good domain has faults: %q", faults)
	}
	for want, spoil := range map[string]func(d *backend.Domain){
		"is empty":               func(d *backend.Domain) { d.Name = "" },
		"is ..":                  func(d *backend.Domain) { d.Name = ".." },
		"holds a '/'":            func(d *backend.Domain) { d.Name = "a/b" },
		"256 bytes":              func(d *backend.Domain) { d.Name = strings.Repeat("x", 256) },
		"UUID":                   func(d *backend.Domain) { d.UUID = strings.ToUpper(d.UUID) },
		"has the ID 3, want -1":  func(d *backend.Domain) { d.ID = 3 },
		"has the ID -1":          func(d *backend.Domain) { d.State = backend.StateRunning },
		"unknown state":          func(d *backend.Domain) { d.State = "on" },
		"absolute path":          func(d *backend.Domain) { d.Config = "c.cfg" },
		"warning":                func(d *backend.Domain) { d.Warnings = []string{"a\nb"} },
		"not one line":           func(d *backend.Domain) { d.Err = errors.New("a\nb") },
		"listed twice":           func(d *backend.Domain) { d.Disks[1].VDev = "xvda" },
		"its vdev":               func(d *backend.Domain) { d.Disks[0].VDev = "a/b" },
		"unknown mode":           func(d *backend.Domain) { d.Disks[0].Mode = "w" },
		"no CD-ROM drive":        func(d *backend.Domain) { d.Disks[0].Source = "" },
		"no format":              func(d *backend.Domain) { d.Disks[0].Format = "" },
		"neither an absolute":    func(d *backend.Domain) { d.Disks[0].Source = "a.img" },
		"source \"web\" is neit": func(d *backend.Domain) { d.Disks[2].Script = "" },
	} {
		d := good()
		spoil(&d)
		if faults := domainFaults([]backend.Domain{d}); len(faults) != 1 || !strings.Contains(faults[0], want) {
			t.Errorf("faults are %q, want one with %q", faults, want)
		}
	}
	if faults := domainFaults([]backend.Domain{good(), good()}); len(faults) != 1 {
		t.Errorf("a domain listed twice has faults %q, want one", faults)
	}
}
