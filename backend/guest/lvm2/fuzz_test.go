package lvm2

import (
	"bytes"
	"flag"
	"testing"

	"domfs/backend"
)

func FuzzText(f *testing.F) {
	f.Add(everyType())
	f.Add(textOf("vg0", 1, 3, ""))
	f.Add(thinText(thinVolume("one", shown, 1, "")))
	f.Add(snapshotText("merging_store", hidden))
	f.Add("a = [1, \"x\\\"\", 'y', z] b { c = -1 } # end")
	f.Fuzz(func(t *testing.T, text string) {
		root, err := parseText(text, maxTextDepth)
		if err != nil {
			return
		}
		if head, err := parseText(text, 1); err != nil {
			t.Errorf("the head of a good text: %v", err)
		} else if len(head.children) != len(root.children) {
			t.Errorf("the head has %d keys, the text %d", len(head.children), len(root.children))
		}
		readGroup(text)
	})
}

func FuzzLabel(f *testing.F) {
	f.Add([]byte(newPV(testUUID("0"), 1, textOf("vg0", 1, 1, ""))[:8192]))
	f.Fuzz(func(t *testing.T, b []byte) {
		// Checksums are set right, or nothing behind them would be reached.
		for s := range min(len(b)/labelSize, labelSectors) {
			sector := b[s*labelSize : (s+1)*labelSize]
			if string(sector[:8]) == "LABELONE" {
				le.PutUint32(sector[16:], crc(sector[20:]))
			}
		}
		l, err := readLabel(memory(b))
		if err != nil {
			return
		}
		for _, at := range l.metadata {
			if at.offset >= 0 && at.offset <= int64(len(b))-mdaHeaderSize {
				h := b[at.offset : at.offset+mdaHeaderSize]
				if at.offset >= labelSectors*labelSize {
					le.PutUint32(h, crc(h[4:]))
				}
			}
			budget := int64(maxTextTotal)
			readArea(memory(b), at, &budget)
		}
	})
}

// FuzzAssemble has a text, with names of two physical volumes in it, and what lies on them.
func FuzzAssemble(f *testing.F) {
	data := bytes.Repeat([]byte("some bytes of a volume. "), 100)
	f.Add(everyType(), data)
	f.Add(thinText(thinVolume("one", shown, 1, "")), data)
	f.Add(snapshotText("cow_store", shown), data)
	f.Add(snapshotText("merging_store", hidden), data)
	f.Add(mirrorlessText(), data)
	super := make([]byte, 512)
	healthy(1, 0, 0).write(super, 2, 0)
	f.Add(everyType(), super)
	f.Fuzz(func(t *testing.T, text string, data []byte) {
		var devices []backend.Device
		for _, uuid := range []string{testUUID("0"), testUUID("1")} {
			m := make(memory, testStart+40*testExtent)
			writeLabel(m, 1, uuid, []location{{testStart, 0}}, []location{{4096, testStart - 4096}})
			if len(text) > testStart/2 {
				return
			}
			writeArea(m, location{4096, testStart - 4096}, text, mdaHeaderSize)
			for at := testStart; at < len(m); at += 4 * testExtent {
				copy(m[at:], data)
			}
			devices = append(devices, m)
		}
		groups, _ := assembleAll(devices...)
		readSome(t, groups)
		groups, _ = assembleAll(devices[1])
		readSome(t, groups)
	})
}

// mirrorlessText is a mirror whose first leg is on a physical volume that is not there.
func mirrorlessText() string {
	return textOf("vg0", 3, 3, volumeText("m_mlog", hidden, linear(0, 1, "pv0", 4))+
		volumeText("m", shown, mirrorText(1, "mirror_log = \"m_mlog\"\nregion_size = 32", place("pv2", 0), place("pv0", 0))))
}

// FuzzPhysicalVolume has the beginning of a physical volume, first as LVM made it, and sets its checksums right.
func FuzzPhysicalVolume(f *testing.F) {
	if worker := flag.Lookup("test.fuzzworker"); worker == nil || worker.Value.String() != "true" {
		// Workers get their inputs from the process that started them, and end without cleaning up.
		for _, seed := range realHeads(f) {
			f.Add(seed)
		}
	}
	f.Fuzz(func(t *testing.T, head []byte) {
		m := make(memory, 4*mib)
		copy(m, head)
		for s := range labelSectors {
			le.PutUint32(m[s*labelSize+16:], crc(m[s*labelSize+20:(s+1)*labelSize]))
		}
		l, err := readLabel(m)
		if err != nil {
			return
		}
		for _, a := range l.metadata {
			if a.offset < labelSectors*labelSize || a.offset > m.Size()-mdaHeaderSize {
				continue
			}
			b := m[a.offset:]
			if offset, size := le.Uint64(b[40:]), le.Uint64(b[48:]); offset < uint64(len(b)) && size <= uint64(len(b))-offset {
				le.PutUint32(b[56:], crc(b[offset:offset+size]))
			}
			le.PutUint32(b, crc(b[4:mdaHeaderSize]))
		}
		groups, _ := assembleAll(m)
		readSome(t, groups)
	})
}

// realHeads are the beginnings of physical volumes that LVM made.
func realHeads(t testing.TB) [][]byte {
	h := newHost(t, 512, 4*mib, 4*mib)
	h.group("vg0", "64k", "--metadatacopies", "2", "--metadatasize", "60k", "--dataalignment", "64k")
	h.create("-n", "a", "-L", "1m", "vg0")
	h.create("-n", "b", "-i", "2", "-I", "4k", "-L", "1m", "vg0")
	heads := [][]byte{h.copyOf(0)[:128<<10], h.copyOf(1)[:128<<10]}
	h.detach()
	return heads
}
