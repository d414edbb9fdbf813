package backend

import (
	"fmt"
	"strings"
)

// MaxNameBytes is what Linux holds in one path component (NAME_MAX).
const MaxNameBytes = 255

// LegalName is the name of a domain, with %-escapes where Linux could not hold it as one path component, and for control
// characters, which would act on the terminal that shows it. It has MaxNameBytes at most.
func LegalName(name string) string {
	switch name {
	case ".":
		return "%2E"
	case "..":
		return "%2E%2E"
	}
	var b strings.Builder
	for i := range len(name) {
		if c := name[i]; c == '/' || c < ' ' || c == 0x7f {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	name = b.String()
	return name[:min(len(name), MaxNameBytes)]
}
