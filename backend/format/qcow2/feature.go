package qcow2

import (
	"fmt"
	"strings"

	"domfs/backend"
)

// Incompatible features, header offset 72. Dirty means that the refcounts may be wrong, which
// only a writer needs.
const (
	incompatDirty       = 1 << 0
	incompatCorrupt     = 1 << 1
	incompatDataFile    = 1 << 2
	incompatCompression = 1 << 3
	incompatExtendedL2  = 1 << 4

	incompatRead = incompatDirty | incompatCorrupt | incompatCompression | incompatExtendedL2
)

// autoclearRawData says that the external data file is a raw image. Of the other autoclear
// features, the bitmaps, nothing is read.
const autoclearRawData = 1 << 1

// Encryption methods, header offset 32.
const (
	encryptionNone = 0
	encryptionAES  = 1
	encryptionLUKS = 2
)

// Compression types, header offset 104.
const (
	compressionDeflate = 0
	compressionZstd    = 1
)

// Feature name table: entries of a type, a bit number and a name padded with zeros.
const (
	featureEntryBytes    = 48
	featureIncompatible  = 0
	maxFeatureTableBytes = 3 * 64 * featureEntryBytes // each bit of the three sets
)

// remake is what to do about an image that is not read. What it names besides was not looked at: a command that reads
// all of it would put files of the host into a disk that whoever chose their names can read (CVE-2010-3851).
const remake = "have it made anew without that (qemu-img can, but reads every file of the host that the image names: only if you trust whoever made it)"

// checkFeatures refuses what is not read, by its name. names are those of the image itself.
func (h *header) checkFeatures(names map[uint]string) error {
	if h.incompatible&incompatDataFile != 0 {
		return unsupported("names another file of the host for its data (an external data file), which whoever made the image has chosen, and which is never opened: have the image made anew without one")
	}
	var unknown []string
	for bit := range uint(64) {
		if h.incompatible&^uint64(incompatRead)&(1<<bit) == 0 {
			continue
		}
		what := fmt.Sprintf("incompatible feature bit %d", bit)
		if name := names[bit]; name != "" {
			what = fmt.Sprintf("%s (%q)", what, name)
		}
		unknown = append(unknown, what)
	}
	if len(unknown) > 0 {
		return unsupported("needs what is not read, %s: "+remake, strings.Join(unknown, ", "))
	}
	return nil
}

func (h *header) checkEncryption(method uint32) error {
	switch method {
	case encryptionNone:
		return nil
	case encryptionAES:
		return unsupported("is encrypted (AES), which is not read: " + remake)
	case encryptionLUKS:
		return unsupported("is encrypted (LUKS), which is not read: " + remake)
	}
	return unsupported("is encrypted by the unknown method %d, which is not read: "+remake, method)
}

func (h *header) checkCompression() error {
	switch h.compression {
	case compressionDeflate, compressionZstd:
	default:
		return unsupported("has the unknown compression type %d, which is not read: "+remake, h.compression)
	}
	if (h.compression != compressionDeflate) != (h.incompatible&incompatCompression != 0) {
		return corrupt("has compression type %d, which its feature bits contradict", h.compression)
	}
	return nil
}

// incompatibleNames reads a feature name table. Names are made printable.
func incompatibleNames(table []byte) map[uint]string {
	names := map[uint]string{}
	for ; len(table) >= featureEntryBytes; table = table[featureEntryBytes:] {
		if bit := uint(table[1]); table[0] == featureIncompatible && bit < 64 {
			names[bit] = printable(cString(table[2:featureEntryBytes]))
		}
	}
	return names
}

// cString is what precedes the first NUL, which is all that QEMU sees of a string.
func cString(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}

func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("the qcow2 image "+format+": %w", append(args, backend.ErrCorrupt)...)
}

func unsupported(format string, args ...any) error {
	return backend.Because(backend.ErrUnsupported, "the qcow2 image "+format, args...)
}
