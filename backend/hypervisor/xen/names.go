package xen

import (
	"fmt"
	"strconv"
	"strings"

	"domfs/backend"
)

// distinguish makes the names of domains unique and legal path components, with an Err where that changed one. The domain
// that has existed longer keeps its name.
func distinguish(domains []backend.Domain) {
	taken := map[string]int{} // name to the number of the domain that has it
	var clashing []*backend.Domain
	for i := range domains {
		d := &domains[i]
		if d.Name == "" {
			clashing = append(clashing, d)
			continue
		}
		if legal := backend.LegalName(d.Name); legal != d.Name {
			if d.Err == nil {
				d.Err = fmt.Errorf("domain %d: the name %.300q cannot name a folder, and is shown as %s: rename it (xl rename): %w", d.ID, d.Name, legal, backend.ErrInvalid)
			}
			d.Name = legal
		}
		if other, ok := taken[d.Name]; ok {
			if d.Err == nil {
				d.Err = fmt.Errorf("domain %d: domain %d has the name %s, too: rename one of them (xl rename): %w", d.ID, other, d.Name, backend.ErrExist)
			}
			clashing = append(clashing, d)
			continue
		}
		taken[d.Name] = d.ID
	}
	for _, d := range clashing { // last, so that an invented name takes none away
		d.Name = freeName(d.Name, d.ID, taken)
		taken[d.Name] = d.ID
	}
}

// freeName is name@NUMBER, or domain-NUMBER where there is none, with a further number where that is taken, too.
func freeName(name string, id int, taken map[string]int) string {
	for n := 1; ; n++ { // ends: taken is finite
		suffix := "@" + strconv.Itoa(id)
		if name == "" {
			suffix = "domain-" + strconv.Itoa(id)
		}
		if n > 1 {
			suffix += "." + strconv.Itoa(n)
		}
		free := name[:min(len(name), backend.MaxNameBytes-len(suffix))] + suffix
		if _, ok := taken[free]; !ok {
			return free
		}
	}
}

// normalUUID is a UUID in lower case, "" if s is none.
func normalUUID(s string) string {
	if len(s) != 36 {
		return ""
	}
	s = strings.ToLower(s)
	for i := range len(s) {
		c := s[i]
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if c != '-' {
				return ""
			}
		} else if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return ""
		}
	}
	return s
}
