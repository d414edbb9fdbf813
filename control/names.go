package control

import (
	"crypto/rand"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"domfs/backend"
)

// checkName says whether name can be a snapshot's: one path component of valid UTF-8
// without control characters, of at most 255 bytes. All else is allowed, a leading "." or
// "-" and blanks included: ErrInvalid.
func checkName(name string) error {
	fault := ""
	switch {
	case name == "":
		fault = "is empty"
	case name == "." || name == "..":
		fault = "is a directory's own"
	case len(name) > maxNameBytes:
		return fmt.Errorf("the name is %d bytes long, and 255 is the most: %w", len(name), backend.ErrInvalid)
	case strings.Contains(name, "/"):
		fault = "has a slash in it"
	case !utf8.ValidString(name):
		fault = "is not UTF-8"
	case strings.ContainsFunc(name, unicode.IsControl):
		fault = "has a control character in it"
	default:
		return nil
	}
	return fmt.Errorf("%q cannot be a snapshot's name, as it %s: %w", name, fault, backend.ErrInvalid)
}

var setIDPattern = regexp.MustCompile(`^[0-9A-Za-z-]{1,64}$`)

func isSetID(s string) bool { return setIDPattern.MatchString(s) }

// newSetID is a new identity for a set: sorts by time, and is never given twice.
func newSetID(now time.Time) string {
	stamp := strings.Replace(now.UTC().Format("20060102T150405.000"), ".", "", 1)
	return stamp + "-" + strings.ToLower(rand.Text()[:10])
}
