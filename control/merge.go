package control

import (
	"fmt"

	"domfs/backend"
)

// The hypervisors are asked in their order: one that knows what runs comes before those that know what is configured. A
// domain that runs and the configuration that it was made of are one domain: what it is now comes from the first, where it is
// written down from the second.

// domainList is what became of a hypervisor's question for its domains.
type domainList struct {
	domains []*Domain
	err     error // why it could not be asked now; domains are then those that it had last
	known   bool  // it has answered once
}

// merge takes over the domains of all hypervisors.
func (inv *Inventory) merge(lists []domainList) {
	var silent error // of a hypervisor before: nobody knows what runs
	for i, a := range lists {
		if i == 0 {
			inv.addDomains(a.domains)
		} else {
			inv.addConfigured(a.domains, silent)
		}
		if a.err != nil && silent == nil {
			silent = a.err
		}
	}
}

// addConfigured takes over domains of a further hypervisor. Of those that it takes for off, one that runs by the word
// of a hypervisor before is that one's configuration, and the others are not known to be off where one before is silent.
func (inv *Inventory) addConfigured(ds []*Domain, silent error) {
	var rest []*Domain
	live := inv.Domains[:len(inv.Domains):len(inv.Domains)]
	configured := map[*Domain]bool{}
	// The best match first: of copies of a file with one UUID, that of the same name is the domain's.
	matches := []func(d, c *Domain) bool{
		func(d, c *Domain) bool { return c.UUID != "" && d.UUID == c.UUID && d.Name == c.Name },
		func(d, c *Domain) bool { return c.UUID != "" && d.UUID == c.UUID },
		func(d, c *Domain) bool { return (c.UUID == "" || d.UUID == "") && d.Name == c.Name },
	}
	for n, matches := range matches {
		rest = nil
		for _, c := range ds {
			d := find(live, func(d *Domain) bool {
				return !configured[d] && c.reported == backend.StateOff && matches(d, c)
			})
			if d == nil {
				rest = append(rest, c)
				continue
			}
			configured[d] = true
			d.configure(c, n == 2)
		}
		ds = rest
	}
	for _, c := range rest {
		if c.reported != backend.StateOff {
			continue
		}
		if d := inv.byName[c.Name]; d != nil && d.hypervisor != c.hypervisor {
			d.Warnings = append(d.Warnings, fmt.Sprintf("%s describes another domain named %s (UUID %s), which is not shown while this one (UUID %s) runs: give it another name",
				c.where(), c.Name, c.UUID, d.UUID))
		}
		if silent != nil && c.Stale == nil {
			c.State = "" // off is what it cannot be said to be
			c.Stale = fmt.Errorf("whether it runs is not known: %w", silent)
		}
	}
	inv.addDomains(rest)
}

func find(ds []*Domain, f func(d *Domain) bool) *Domain {
	for _, d := range ds {
		if f(d) {
			return d
		}
	}
	return nil
}

// configure makes c the configuration of a domain that runs.
func (d *Domain) configure(c *Domain, byName bool) {
	if d.Config == "" {
		d.Config = c.Config
	}
	switch {
	case d.UUID == "":
		d.UUID = c.UUID
	case byName:
		d.uuidOfRun = true
	}
	d.Warnings = append(d.Warnings, c.Warnings...)
	if c.Err != nil { // what the domain is now is known all the same
		d.Warnings = append(d.Warnings, oneLine(c.Err.Error()))
	}
}

// where is the configuration of a domain, for messages.
func (d *Domain) where() string {
	if d.Config == "" {
		return d.hypervisor.Name()
	}
	return d.Config
}
