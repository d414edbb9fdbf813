package backend

// FormatRaw is the name of bytes that are in no Format.
const FormatRaw = "raw"

// Format reads a volume's bytes from a file that does not keep them raw. Which one a file
// is in, its disk's configuration says: it is never guessed from bytes that a guest may have written.
type Format interface {
	// Name is what a Disk's Format says: qcow2.
	Name() string
	// Header reads what a file says of itself, but for its tables: a few KiB at most.
	// What is not read (an external data file, an unknown incompatible feature) is
	// ErrUnsupported and named, as what Open would refuse is.
	Header(file Device) (FormatHeader, error)
	// Open opens the bytes that a guest sees. backing has those that file does not; it is nil if
	// Header names none. A backing shorter than the image goes on as zeros. Closing the result closes
	// both; after an error they are the caller's.
	//
	// The result is Sparse, and a Locator where bytes lie in file or in backing unaltered.
	Open(file, backing Device) (Device, error)
}

// FormatHeader is what a file in some Format says of itself.
type FormatHeader struct {
	SizeBytes int64 // as the guest sees it
	// Backing is the file whose bytes this one has where it has none of its own: as its
	// header has it, which may be relative to the folder of the file, an URL, or anything.
	Backing string
	// BackingFormat is the Format of Backing, "" where the header does not say.
	BackingFormat string
}

// FindFormat finds the format with a name, as a Disk has it. It is nil for raw, which "" is, too;
// ErrUnsupported, with those that are read, for one that is not among formats.
func FindFormat(formats []Format, name string) (Format, error) {
	if name == FormatRaw || name == "" {
		return nil, nil
	}
	for _, f := range formats {
		if f.Name() == name {
			return f, nil
		}
	}
	const most = 300 // of a name, in a message
	if len(name) > most {
		name = name[:most] + "…"
	}
	return nil, Because(ErrUnsupported, "%s is not read, only %s", name, FormatNames(formats))
}

// FormatNames are raw and the formats, in words.
func FormatNames(formats []Format) string {
	names := FormatRaw
	for i, f := range formats {
		if i == len(formats)-1 {
			names += " and " + f.Name()
		} else {
			names += ", " + f.Name()
		}
	}
	return names
}
