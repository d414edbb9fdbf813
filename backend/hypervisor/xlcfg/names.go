package xlcfg

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"

	"domfs/backend"
)

// distinguish makes the names of domains unique and legal path components, with an
// Err where that changed one. Domains that could be read have the first choice, so
// that a broken file takes no name away, and of these the ones whose files are named as they are,
// so that a copy (web01-old.cfg) takes none from its original; else the order decides.
func distinguish(domains []backend.Domain) {
	owner := map[string]string{} // name to the file that has it
	for i := range domains {
		d := &domains[i]
		if legal := backend.LegalName(d.Name); legal != d.Name {
			if d.Err == nil {
				d.Err = fmt.Errorf("%s: the name %.300q cannot name a folder, and is shown as %s: %w", shown(d.Config), d.Name, shown(legal), backend.ErrInvalid)
			}
			d.Name = legal
		}
	}
	order := make([]*backend.Domain, len(domains))
	for i := range order {
		order[i] = &domains[i]
	}
	slices.SortStableFunc(order, func(a, b *backend.Domain) int { return rank(a) - rank(b) })
	var clashing []*backend.Domain // renamed last, so that an invented name takes none away
	for _, d := range order {
		if owner[d.Name] != "" {
			clashing = append(clashing, d)
			continue
		}
		owner[d.Name] = d.Config
	}
	for _, d := range clashing {
		clash := fmt.Sprintf("%s: %s has a domain of the name %s, too: give one of them another name", shown(d.Config), shown(owner[d.Name]), shown(d.Name))
		if d.Err == nil {
			d.Err = fmt.Errorf("%s: %w", clash, backend.ErrExist)
		} else {
			d.Warnings = append(d.Warnings, clash)
		}
		d.Name = freeName(d.Name, backend.LegalName(filepath.Base(d.Config)), owner)
		owner[d.Name] = d.Config
	}
	warnEqualUUIDs(order)
}

// rank is lower for a domain that chooses its name before others.
func rank(d *backend.Domain) int {
	switch {
	case d.Err != nil:
		return 2
	case d.Name != fileName(d.Config):
		return 1
	}
	return 0
}

// freeName is name@file, with a number where that is taken, too.
func freeName(name, file string, owner map[string]string) string {
	for n := 1; ; n++ { // ends: owner is finite
		suffix := "@" + file
		if n > 1 {
			suffix += "." + strconv.Itoa(n)
		}
		suffix = suffix[max(0, len(suffix)-backend.MaxNameBytes/2):]
		free := name[:min(len(name), backend.MaxNameBytes-len(suffix))] + suffix
		if owner[free] == "" {
			return free
		}
	}
}

// warnEqualUUIDs tells of copies of a file whose uuid was not changed: snapshots
// belong to a UUID.
func warnEqualUUIDs(domains []*backend.Domain) {
	first := map[string]*backend.Domain{}
	for _, d := range domains {
		if d.UUID == "" {
			continue
		}
		if other := first[d.UUID]; other != nil {
			d.Warnings = append(d.Warnings, fmt.Sprintf("%s: its uuid is also that of %s (%s): make a new one (uuidgen)", shown(d.Config), shown(other.Name), shown(other.Config)))
			continue
		}
		first[d.UUID] = d
	}
}
