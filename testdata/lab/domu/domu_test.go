package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"domfs/testdata/lab/domu/records"
)

// heard is what the guest says, until the test ends.
type heard struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (h *heard) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.text.Write(p)
}

func (h *heard) await(t *testing.T, line string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		h.mu.Lock()
		text := h.text.String()
		h.mu.Unlock()
		if strings.Contains("\n"+text, "\n"+line+"\n") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no line is %q:\n%s", line, text)
		}
	}
}

func listen(t *testing.T) *heard {
	t.Helper()
	h := &heard{}
	set := func(w io.Writer) {
		console.mu.Lock()
		defer console.mu.Unlock()
		console.out = w
	}
	set(h)
	t.Cleanup(func() { set(io.Discard) })
	return h
}

func TestWriter_WritesToEachDiskInTurnAndGoesOnWhereItWas(t *testing.T) {
	dir := t.TempDir()
	paths := []string{filepath.Join(dir, "root"), filepath.Join(dir, "data")}
	for i, lines := range []string{string(records.Line(1)) + string(records.Line(3)), string(records.Line(2))} {
		if err := os.WriteFile(paths[i], []byte(lines), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	h := listen(t)
	w, err := newWriter(paths, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	w.setRunning(true)
	h.await(t, "synced 9")
	w.setRunning(false)
	read := func() (files [][]byte) {
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, text)
		}
		return files
	}
	last, err := records.Check(read()...)
	if err != nil || last < 9 {
		t.Errorf("records up to %d, %v", last, err)
	}
	time.Sleep(20 * time.Millisecond)
	if now, err := records.Check(read()...); err != nil || now != last {
		t.Errorf("idle, it wrote records %d to %d, %v", last, now, err)
	}
}

func TestObey_DoesWhatIsTold(t *testing.T) {
	h := listen(t)
	w, err := newWriter([]string{filepath.Join(t.TempDir(), "root")}, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	obey(strings.NewReader("nothing\nc1 echo a; echo b c\nc2 exit 3\nc3 go\n"), w)
	for _, line := range []string{"said c1 a", "said c1 b c", "done c1 0", "done c2 3", "done c3 0", "synced 5"} {
		h.await(t, line)
	}
	obey(strings.NewReader("c4 idle\n"), w)
	h.await(t, "done c4 0")
	if w.running {
		t.Error("it is not idle")
	}
}

// store is a xenstore that has an answer ready.
type store struct {
	io.Reader
	bytes.Buffer // what it is sent
}

func (s *store) Read(p []byte) (int, error) { return s.Reader.Read(p) }

func TestExchange_IsOneMessageAndItsAnswer(t *testing.T) {
	header := func(kind byte, length byte) string {
		return string([]byte{kind, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, length, 0, 0, 0})
	}
	tests := []struct {
		name, answer, text, says string
	}{
		{"a value", header(2, 5) + "value", "value", ""},
		{"an error", header(16, 7) + "EACCES\x00", "", "EACCES"},
		{"too long", header(2, 5)[:13] + "\xff\xff\xff", "", "bytes"},
		{"cut off", header(2, 5) + "val", "", "EOF"},
	}
	for _, test := range tests {
		s := &store{Reader: strings.NewReader(test.answer)}
		answer, err := exchange(s, 2, []byte("a\x00"))
		if test.says == "" && (err != nil || string(answer) != test.text) || test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)) {
			t.Errorf("%s: %q, %v", test.name, answer, err)
		}
		if sent := s.Buffer.String(); sent != header(2, 2)+"a\x00" {
			t.Errorf("%s: sent %q", test.name, sent)
		}
	}
}

func TestSizes_TellsEachChangeOfADisk(t *testing.T) {
	dir := t.TempDir()
	set := func(name, size string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "size"), []byte(size+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	h := listen(t)
	s, err := newSizes(dir)
	if err != nil {
		t.Fatal(err)
	}
	steps := []struct {
		change func()
		says   string
	}{
		{func() { set("xvda", "204800"); set("dm-0", "8") }, "size xvda 204800\n"},
		{func() {}, ""},
		{func() { set("xvda", "212992") }, "size xvda 212992\n"},
		{func() { set("xvdb", "16") }, "size xvdb 16\n"},
		{func() { set("xvdb", "0") }, "size xvdb 0\n"},
		{func() { _ = os.RemoveAll(filepath.Join(dir, "xvdb")) }, "size xvdb gone\n"},
		{func() { set("xvdb", "0") }, "size xvdb 0\n"},
	}
	for i, step := range steps {
		step.change()
		h.mu.Lock()
		h.text.Reset()
		h.mu.Unlock()
		if err := s.look(); err != nil {
			t.Fatal(err)
		}
		if said := h.text.String(); said != step.says {
			t.Errorf("step %d: it said %q, want %q", i, said, step.says)
		}
	}
	if len(s.disks) != 2 {
		t.Errorf("it has %d disks open", len(s.disks))
	}
}
