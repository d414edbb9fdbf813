package hostdev

import (
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"
)

// Escape writes a path of the tree with those bytes only that device-mapper's tools and udev leave alone in a
// name (dmsetup(8), mangling): letters, digits, ".", "+", "-" as they are, "/" as ":", all else as "_" and two hexadecimal digits.
func Escape(path string) string {
	var b strings.Builder
	for i := range len(path) {
		switch c := path[i]; {
		case c == '/':
			b.WriteByte(':')
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '+', c == '-':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "_%02x", c)
		}
	}
	return b.String()
}

// EscapeWord is Escape that leaves no ":".
func EscapeWord(word string) string { return strings.ReplaceAll(Escape(word), ":", "_2f") }

var escaped = regexp.MustCompile(`_[0-9a-f]{2}|:`)

// Unescape undoes Escape and EscapeWord.
func Unescape(s string) string {
	return escaped.ReplaceAllStringFunc(s, func(e string) string {
		if e == ":" {
			return "/"
		}
		c, _ := hex.DecodeString(e[1:])
		return string(c)
	})
}
