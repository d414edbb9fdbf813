package xenstore

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"domfs/backend"
)

func FuzzMessages(f *testing.F) {
	for _, m := range []message{
		{typ: typeRead, req: 1, payload: []byte("web01")},
		{typ: typeDirectory, req: 2, tx: 3, payload: []byte("0\x001\x00")},
		{typ: typePermissions, req: 3, payload: []byte("n0\x00r7\x00")},
		{typ: typeWatchEvent, payload: []byte("/local/domain\x00domfs-1\x00")},
		{typ: typeError, req: 4, payload: []byte("ENOENT\x00")},
	} {
		f.Add(m.encode())
		f.Add(append(m.encode(), m.encode()...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		for {
			m, err := readMessage(r)
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, backend.ErrCorrupt) {
					t.Fatalf("error %v", err)
				}
				return
			}
			again, err := readMessage(bytes.NewReader(m.encode()))
			if err != nil || again.typ != m.typ || again.req != m.req || again.tx != m.tx || !bytes.Equal(again.payload, m.payload) {
				t.Fatalf("%+v becomes %+v, %v", m, again, err)
			}
			if names, err := namesOf(m.payload); err == nil {
				for _, n := range names {
					if checkPath("/a/"+n) == nil && (n == "" || bytes.ContainsAny([]byte(n), "/\x00")) {
						t.Fatalf("name %q", n)
					}
				}
			}
			if p, err := permissionsOf(m.payload); err == nil && (len(p) == 0 || p.Owner() < 0 || p.Owner() > 65535) {
				t.Fatalf("permissions %v", p)
			}
			if path, token, err := eventOf(m.payload); err == nil && bytes.ContainsRune([]byte(path+token), 0) {
				t.Fatalf("event %q %q", path, token)
			}
			_ = errorOf(typeRead, "/a", m.payload).Error()
		}
	})
}
