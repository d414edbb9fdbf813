package xenstore

import (
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"strings"

	"domfs/backend"
)

// The types of messages, enum xsd_sockmsg_type.
const (
	typeDirectory        = 1
	typeRead             = 2
	typePermissions      = 3
	typeWatch            = 4
	typeUnwatch          = 5
	typeTransactionStart = 6
	typeTransactionEnd   = 7
	typeWatchEvent       = 15
	typeError            = 16
	typeDirectoryPart    = 22
)

var typeNames = map[uint32]string{
	typeDirectory: "DIRECTORY", typeRead: "READ", typePermissions: "GET_PERMS", typeWatch: "WATCH", typeUnwatch: "UNWATCH",
	typeTransactionStart: "TRANSACTION_START", typeTransactionEnd: "TRANSACTION_END", typeDirectoryPart: "DIRECTORY_PART",
}

const (
	headerBytes = 16
	maxPayload  = 4096 // XENSTORE_PAYLOAD_MAX
	maxPath     = 3072 // XENSTORE_ABS_PATH_MAX, bytes
)

// message is struct xsd_sockmsg and what follows it.
type message struct {
	typ, req, tx uint32
	payload      []byte
}

func (m message) encode() []byte {
	b := make([]byte, headerBytes, headerBytes+len(m.payload))
	for i, n := range []uint32{m.typ, m.req, m.tx, uint32(len(m.payload))} {
		binary.NativeEndian.PutUint32(b[4*i:], n)
	}
	return append(b, m.payload...)
}

// readMessage reads one message. io.EOF is the end between two.
func readMessage(r io.Reader) (message, error) {
	var h [headerBytes]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return message{}, err
	}
	m := message{typ: binary.NativeEndian.Uint32(h[0:]), req: binary.NativeEndian.Uint32(h[4:]), tx: binary.NativeEndian.Uint32(h[8:])}
	n := binary.NativeEndian.Uint32(h[12:])
	if n > maxPayload {
		return m, fmt.Errorf("a message of %d bytes, of which %d are the most: %w", n, maxPayload, backend.ErrCorrupt)
	}
	m.payload = make([]byte, n)
	if _, err := io.ReadFull(r, m.payload); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return m, err
	}
	return m, nil
}

// stringsOf are strings each ended by a NUL.
func stringsOf(b []byte) ([]string, error) {
	if len(b) == 0 {
		return nil, nil
	}
	if b[len(b)-1] != 0 {
		return nil, fmt.Errorf("a string without an end: %w", backend.ErrCorrupt)
	}
	return strings.Split(string(b[:len(b)-1]), "\x00"), nil
}

// namesOf are the names of nodes, none of which leads elsewhere.
func namesOf(b []byte) ([]string, error) {
	names, err := stringsOf(b)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if n == "" || len(n) > maxPath || strings.Contains(n, "/") {
			return nil, fmt.Errorf("%.40q as the name of a node: %w", n, backend.ErrCorrupt)
		}
	}
	return names, nil
}

// Permissions say who may do what with a node. The first names its owner, who may do anything, and what those may who are not
// named; the others name domains.
type Permissions []Permission

// Permission is that of one domain.
type Permission struct {
	Domain      int
	Read, Write bool
}

// Owner is the owner's number, -1 if there is none.
func (p Permissions) Owner() int {
	if len(p) == 0 {
		return -1
	}
	return p[0].Domain
}

// WritableBy tells whether a domain that is none of trusted may write to the node.
func (p Permissions) WritableBy(trusted func(domain int) bool) bool {
	for i, one := range p {
		if i == 0 && one.Write || !trusted(one.Domain) && (i == 0 || one.Write) {
			return true
		}
	}
	return len(p) == 0
}

func permissionsOf(b []byte) (Permissions, error) {
	list, err := stringsOf(b)
	if err != nil {
		return nil, err
	}
	var out Permissions
	for _, s := range list {
		bad := fmt.Errorf("%.40q as a permission: %w", s, backend.ErrCorrupt)
		if s == "" {
			return nil, bad
		}
		id, err := strconv.ParseUint(s[1:], 10, 16)
		if err != nil {
			return nil, bad
		}
		p := Permission{Domain: int(id)}
		switch s[0] {
		case 'n':
		case 'r':
			p.Read = true
		case 'w':
			p.Write = true
		case 'b':
			p.Read, p.Write = true, true
		default:
			return nil, bad
		}
		out = append(out, p)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("a node without permissions: %w", backend.ErrCorrupt)
	}
	return out, nil
}

// eventOf is a WATCH_EVENT's path and token; further strings (newer versions tell a depth) are ignored.
func eventOf(b []byte) (path, token string, err error) {
	list, err := stringsOf(b)
	if err == nil && len(list) < 2 {
		err = fmt.Errorf("an event of %d strings: %w", len(list), backend.ErrCorrupt)
	}
	if err != nil {
		return "", "", err
	}
	return list[0], list[1], nil
}

// text is a reply's value without the NUL that some versions end it with.
func text(b []byte) string { return strings.TrimSuffix(string(b), "\x00") }

// checkPath refuses what xenstored does, and what would change the form of a request.
func checkPath(path string) error {
	ok := strings.HasPrefix(path, "/") && len(path) <= maxPath && !strings.Contains(path, "//") && (path == "/" || !strings.HasSuffix(path, "/"))
	if ok && isName(path[1:]) || path == "@introduceDomain" || path == "@releaseDomain" {
		return nil
	}
	return fmt.Errorf("%.80q is not a path of the store: %w", path, backend.ErrInvalid)
}

func isName(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-/_@", r))
	})
}
