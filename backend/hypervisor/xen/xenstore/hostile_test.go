package xenstore_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/hypervisor/xen/xenstore"
	"domfs/backend/hypervisor/xen/xenstore/xenstoretest"
)

type msg = xenstoretest.Message

func TestClient_SurvivesAPeerThatLies(t *testing.T) {
	huge := make([]byte, 16)
	binary.NativeEndian.PutUint32(huge, xenstoretest.Read)
	binary.NativeEndian.PutUint32(huge[12:], 1<<31)
	for name, one := range map[string]struct {
		answer func(c *xenstoretest.Conn, m msg)
		want   error
	}{
		"a length that is too large": {func(c *xenstoretest.Conn, m msg) { c.Write(huge) }, backend.ErrCorrupt},
		"an answer to nothing":       {func(c *xenstoretest.Conn, m msg) { c.Send(msg{Type: m.Type, Req: m.Req + 7}) }, backend.ErrCorrupt},
		"request 0":                  {func(c *xenstoretest.Conn, m msg) { c.Send(msg{Type: m.Type}) }, backend.ErrCorrupt},
		"another type":               {func(c *xenstoretest.Conn, m msg) { c.Send(msg{Type: 3, Req: m.Req}) }, backend.ErrCorrupt},
		"an event without a token":   {func(c *xenstoretest.Conn, m msg) { c.Send(msg{Type: xenstoretest.WatchEvent, Payload: "/a\x00"}) }, backend.ErrCorrupt},
		"an event that does not end": {func(c *xenstoretest.Conn, m msg) { c.Send(msg{Type: xenstoretest.WatchEvent, Payload: "/a\x00b"}) }, backend.ErrCorrupt},
		"the end":                    {func(c *xenstoretest.Conn, m msg) { c.Close() }, backend.ErrIO},
		"the end within a message": {func(c *xenstoretest.Conn, m msg) {
			c.Write(msg{Type: m.Type, Req: m.Req, Payload: "abc"}.Encode()[:17])
			c.Close()
		}, backend.ErrIO},
		"an error without a name": {func(c *xenstoretest.Conn, m msg) { c.Send(msg{Type: xenstoretest.Error, Req: m.Req}) }, backend.ErrIO},
		"an error with a bad name": {func(c *xenstoretest.Conn, m msg) {
			c.Send(msg{Type: xenstoretest.Error, Req: m.Req, Payload: "E\n\x1b[2J\x00"})
		}, backend.ErrIO},
		"an error with an unknown name": {func(c *xenstoretest.Conn, m msg) {
			c.Send(msg{Type: xenstoretest.Error, Req: m.Req, Payload: "EWHAT\x00"})
		}, backend.ErrIO},
	} {
		t.Run(name, func(t *testing.T) {
			s, c := open(t, 5*time.Second)
			s.Set("/a", "x")
			s.Hook(func(conn *xenstoretest.Conn, m msg) bool {
				one.answer(conn, m)
				return true
			})
			began := time.Now()
			_, err := c.Read(t.Context(), "/a")
			if !errors.Is(err, one.want) || strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Errorf("got %v, want %v", err, one.want)
			}
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("it took %s", took)
			}
			s.Hook(nil)
			wantRead(t, c, "/a", "x")
		})
	}
}

func TestClient_RefusesMalformedAnswers(t *testing.T) {
	s, c := open(t, 5*time.Second)
	s.Set("/a", "x")
	payload := ""
	s.Hook(func(conn *xenstoretest.Conn, m msg) bool {
		conn.Send(msg{Type: m.Type, Req: m.Req, Tx: m.Tx, Payload: payload})
		return true
	})
	for _, payload = range []string{"no end", "a\x00\x00", "a/b\x00", "..\x00/\x00"} {
		if names, err := c.Directory(t.Context(), "/a"); !errors.Is(err, backend.ErrCorrupt) {
			t.Errorf("list %q: %q, %v", payload, names, err)
		}
	}
	for _, payload = range []string{"", "n0", "\x00", "x0\x00", "n\x00", "n-1\x00", "n65536\x00", "n0\x00r\x00"} {
		if p, err := c.Permissions(t.Context(), "/a"); !errors.Is(err, backend.ErrCorrupt) {
			t.Errorf("permissions %q: %v, %v", payload, p, err)
		}
	}
	for _, payload = range []string{"", "0\x00", "x\x00", "4294967296\x00", "-1\x00"} {
		if err := c.Transaction(t.Context(), func(*xenstore.Tx) error { return nil }); !errors.Is(err, backend.ErrCorrupt) {
			t.Errorf("transaction %q: %v", payload, err)
		}
	}
	// Lists in parts that do not end, do not go on, or go on after their end.
	for _, part := range []string{"1\x00" + strings.Repeat("nnnnnnnnnnnnnnn\x00", 200), "1\x00", "1\x00\x00more\x00", "no end"} {
		s.Hook(func(conn *xenstoretest.Conn, m msg) bool {
			if m.Type == xenstoretest.Directory {
				conn.Send(msg{Type: xenstoretest.Error, Req: m.Req, Payload: "E2BIG\x00"})
			} else {
				conn.Send(msg{Type: m.Type, Req: m.Req, Payload: part})
			}
			return true
		})
		if names, err := c.Directory(t.Context(), "/a"); !errors.Is(err, backend.ErrCorrupt) {
			t.Errorf("part %.20q: %d names, %v", part, len(names), err)
		}
	}
}

func TestClient_IsNotBotheredByEventsThatNobodyAskedFor(t *testing.T) {
	s, c := open(t, 5*time.Second)
	s.Set("/a", "x")
	var fired atomic.Int32
	if _, err := c.Watch(t.Context(), "/a", func(string) { fired.Add(1) }); err != nil {
		t.Fatal(err)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	before := m.HeapAlloc
	flood := make([]msg, 500)
	for i := range flood {
		flood[i] = msg{Type: xenstoretest.WatchEvent, Req: uint32(i), Tx: 9, Payload: fmt.Sprintf("/x/%d\x00nobody\x003\x00", i)}
	}
	for range 40 {
		s.Broadcast(flood...)
		wantRead(t, c, "/a", "x")
	}
	runtime.GC()
	runtime.ReadMemStats(&m)
	if m.HeapAlloc > before+8<<20 {
		t.Errorf("%d bytes are held after it", m.HeapAlloc-before)
	}
	if n := fired.Load(); n != 1 {
		t.Errorf("a watch fired %d times", n)
	}
}
