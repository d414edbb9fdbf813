package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// The messages of xenstore that a guest changes its own part by: xen/include/public/io/xs_wire.h.
const (
	xenbus       = "/dev/xen/xenbus"
	headerBytes  = 16
	payloadBytes = 4096
	typeError    = 16
)

// commands are the messages that a shell may send, and how many words they take.
var commands = map[string]struct {
	kind  uint32
	words int
}{
	"read":  {2, 1},
	"write": {11, 2},
	"mkdir": {12, 1},
	"rm":    {13, 1},
}

// xenstore does what "xenstore COMMAND PATH [VALUE]" says, and prints what is answered.
func xenstore(args []string) error {
	if len(args) < 2 || args[0] != "xenstore" {
		return fmt.Errorf("%q is no command", args)
	}
	command, ok := commands[args[1]]
	if !ok || len(args)-2 != command.words {
		return fmt.Errorf("%q is no command of xenstore", args[1:])
	}
	payload := append([]byte(args[2]), 0)
	if command.words > 1 { // a value has no end of its own
		payload = append(payload, args[3]...)
	}
	if len(payload) > payloadBytes {
		return fmt.Errorf("%d bytes are more than xenstore takes", len(payload))
	}
	file, err := os.OpenFile(xenbus, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	answer, err := exchange(file, command.kind, payload)
	if err != nil {
		return fmt.Errorf("%s: %w", xenbus, err)
	}
	if args[1] == "read" {
		fmt.Printf("%s\n", answer)
	}
	return nil
}

// exchange sends one message and returns what is answered.
func exchange(store io.ReadWriter, kind uint32, payload []byte) ([]byte, error) {
	message := binary.LittleEndian.AppendUint32(nil, kind)
	message = binary.LittleEndian.AppendUint32(message, 1) // request
	message = binary.LittleEndian.AppendUint32(message, 0) // no transaction
	message = binary.LittleEndian.AppendUint32(message, uint32(len(payload)))
	if _, err := store.Write(append(message, payload...)); err != nil {
		return nil, err
	}
	header := make([]byte, headerBytes)
	if _, err := io.ReadFull(store, header); err != nil {
		return nil, err
	}
	length := binary.LittleEndian.Uint32(header[12:])
	if length > payloadBytes {
		return nil, fmt.Errorf("an answer of %d bytes", length)
	}
	answer := make([]byte, length)
	if _, err := io.ReadFull(store, answer); err != nil {
		return nil, err
	}
	if binary.LittleEndian.Uint32(header) == typeError {
		return nil, errors.New(string(bytes.TrimRight(answer, "\x00")))
	}
	return answer, nil
}
