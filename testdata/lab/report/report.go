// Package report is what the lab's machine and its host say to each other: the plan on the
// payload disk, and one JSON object a line on the way back.
package report

// Where things are in the machine.
const (
	Port    = "/dev/virtio-ports/lab.report" // what the machine writes lines to
	Payload = "/lab/payload"                 // where the host's files are, read-only
	Plan    = Payload + "/plan.json"
	Source  = Payload + "/src" // the repository's files
	Program = Payload + "/domfs"
	DomU    = Payload + "/domu" // the first program of Xen's guests
	Temp    = "/scratch/tmp"    // XFS, sparse files may be large
)

// Tests is what the machine does.
type Tests struct {
	Binaries       []Binary
	Bench          bool // Runs are benchmarks
	TimeoutSeconds int  // for each binary
}

// Binary is one package's tests.
type Binary struct {
	Package string
	Dir     string   // below Source, where the tests run
	Path    string   // below Payload
	Runs    []string // what each machine runs, as go test's -run, or its -bench; "" for nothing
}

// ShareKey is what a machine finds its number by, on its kernel's command line: KEY=NUMBER.
const ShareKey = "lab.share"

// Kind tells what a line says.
type Kind string

const (
	Ready   Kind = "ready"   // the machine has booted
	Begin   Kind = "begin"   // a binary starts
	Output  Kind = "output"  // it has written Bytes
	End     Kind = "end"     // it has ended, with Status, after Seconds
	Left    Kind = "left"    // it left Text on the machine
	Trouble Kind = "trouble" // the machine itself failed: Text
	Done    Kind = "done"    // there is no more
)

// Line is what the machine says.
type Line struct {
	Kind    Kind
	Package string  `json:",omitempty"`
	Text    string  `json:",omitempty"`
	Bytes   []byte  `json:",omitempty"`
	Status  int     `json:",omitempty"`
	Seconds float64 `json:",omitempty"`
}
