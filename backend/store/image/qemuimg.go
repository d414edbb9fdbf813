package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"domfs/backend"
	"domfs/backend/fault"
	"domfs/backend/run"

	"golang.org/x/sys/unix"
)

// resizeTimeout is how long qemu-img may take: it writes tables, and no data.
const resizeTimeout = 2 * time.Minute

// resizeFormat grows an image that is not raw, whose file f is open.
func (s *Store) resizeFormat(ctx context.Context, v backend.Volume, f *os.File, st *unix.Stat_t, format backend.Format, sizeBytes int64) (int64, error) {
	target := s.RoundSize(v, sizeBytes)
	c, err := s.openChain(chainFile{f: f, st: st, path: v.ID, folder: filepath.Dir(v.ID), format: format})
	if err != nil {
		return 0, fmt.Errorf("resize %s: %w", v.ID, err)
	}
	defer c.closeBacking()
	now := c.sizeBytes()
	if now == sizeBytes || now == target {
		return now, nil
	}
	if target < now {
		return 0, tooSmall(v.ID, target, now)
	}
	if err := s.refuseGuarded(v.ID, idOf(st)); err != nil {
		return 0, err
	}
	if err := s.refuseBackingWriter(c); err != nil {
		return 0, fmt.Errorf("resize %s: %w", v.ID, err)
	}
	if err := s.refuseTampering(c); err != nil {
		return 0, err
	}
	// As long as it is open for writing, nobody can begin to copy it.
	w, err := openToGrow(v.ID, idOf(st))
	if err != nil {
		return 0, err
	}
	defer w.Close()
	if err := s.qemuResize(ctx, c, target); err != nil {
		return 0, err
	}
	fault.Point("image.resize.format")
	if err := w.Sync(); err != nil {
		return 0, failed("resize", v.ID, err)
	}
	if st, err = statFile(f, v.ID); err != nil {
		return 0, err
	}
	h, err := format.Header(newDevice(f, v.ID, st.Size))
	if err != nil {
		return 0, fmt.Errorf("resize %s: qemu-img left it unreadable: %w", v.ID, err)
	}
	if h.SizeBytes < target {
		return 0, backend.Because(backend.ErrIO, "resize %s: qemu-img reports success, and it has %d bytes instead of %d", v.ID, h.SizeBytes, target)
	}
	return h.SizeBytes, nil
}

// qemuResize lets qemu-img grow an image. It is told each file of the chain by our own descriptor of it, so that
// it looks neither at paths, which may have changed, nor at the backing files that headers name. An external data
// file it opens if the header that it reads itself has one, and there is no option that forbids it: nobody may be
// able to change the header any more (refuseTampering).
func (s *Store) qemuResize(ctx context.Context, c chain, target int64) error {
	ctx, cancel := context.WithTimeout(ctx, resizeTimeout)
	defer cancel()
	image, err := c.qemuOptions()
	if err != nil {
		return err
	}
	_, err = s.run.Run(ctx, "qemu-img", "resize", "-q", "--", image, strconv.FormatInt(target, 10))
	if err != nil {
		return qemuFailed("resize", c[0].path, image, err)
	}
	return nil
}

// blockNode is an image as QEMU's json: file names describe one (qemu(1), -blockdev).
type blockNode struct {
	Driver  string     `json:"driver"`
	File    blockFile  `json:"file"`
	Backing *blockNode `json:"backing"` // null: none, whatever the header says
}

// rawNode is one without the option backing.
type rawNode struct {
	Driver string    `json:"driver"`
	File   blockFile `json:"file"`
}

type blockFile struct {
	Driver   string `json:"driver"`
	Filename string `json:"filename"`
}

// MarshalJSON leaves out what the driver raw does not know.
func (b *blockNode) MarshalJSON() ([]byte, error) {
	if b.Driver == backend.FormatRaw {
		return json.Marshal(rawNode{b.Driver, b.File})
	}
	type plain blockNode
	return json.Marshal((*plain)(b))
}

// qemuOptions describes the chain to QEMU.
func (c chain) qemuOptions() (string, error) {
	var node *blockNode
	for i := len(c) - 1; i >= 0; i-- {
		driver := backend.FormatRaw
		if c[i].format != nil {
			driver = c[i].format.Name()
		}
		file := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), c[i].f.Fd())
		node = &blockNode{driver, blockFile{"file", file}, node}
	}
	b, err := json.Marshal(node)
	if err != nil {
		return "", fmt.Errorf("describe %s to QEMU: %w", c[0].path, err)
	}
	return "json:" + string(b), nil
}

// qemuSays are the sentinels for what qemu-img writes to standard error (block.c, block/file-posix.c
// and block/qcow2.c of QEMU), and what to do.
var qemuSays = []struct {
	text     string
	sentinel error
	hint     string
}{
	{"Failed to get \"write\" lock", backend.ErrBusy, "another process has it open: shut its domain down"},
	{"Failed to get shared \"write\" lock", backend.ErrBusy, "another process has it or a backing file of it open: shut its domain down"},
	{"Failed to lock byte", backend.ErrBusy, "another process has it open: shut its domain down"},
	{"image which has snapshots", backend.ErrUnsupported, "it has internal snapshots: delete them with qemu-img snapshot -d, or make it a version 3 image with qemu-img amend -o compat=1.1"},
	{"with bitmaps", backend.ErrUnsupported, "it has bitmaps that QEMU cannot resize: remove them with qemu-img bitmap --remove"},
	{"File too large", backend.ErrNoSpace, "no image of this cluster size, or no file on its filesystem, can be that large"},
	{"exceeds maximum", backend.ErrNoSpace, "no image can be that large"},
	{"Image is corrupt", backend.ErrCorrupt, "check it with qemu-img check"},
	{"image is corrupt", backend.ErrCorrupt, "check it with qemu-img check"},
	{"Unknown driver", backend.ErrUnsupported, "this QEMU has no driver for the format"},
	{"No space left on device", backend.ErrNoSpace, "free space on its filesystem"},
	{"Disk quota exceeded", backend.ErrNoSpace, "raise the quota or free space"},
	{"Permission denied", backend.ErrAccess, "run domfs as root, or allow its user to write it"},
	{"Read-only file system", backend.ErrReadOnly, "mount its filesystem read-write"},
}

// qemuFailed is the error of qemu-img on the image at path, which it was told of as image.
func qemuFailed(op, path, image string, err error) error {
	var e *run.Error
	if !errors.As(err, &e) || e.Err != nil {
		if errors.Is(err, backend.ErrNotExist) {
			// The image is there: it must not look as if it were not.
			return backend.Because(backend.ErrUnsupported, "%s %s: qemu-img does it, which is not installed: install the package qemu-utils", op, path)
		}
		return fmt.Errorf("%s %s: %w", op, path, err)
	}
	said := strings.ReplaceAll(e.Stderr, image, path)
	for _, q := range qemuSays {
		if strings.Contains(said, q.text) {
			return backend.Because(q.sentinel, "%s %s: %s (%s)", op, path, q.hint, firstLine(said))
		}
	}
	short := *e
	short.Argv, short.Stderr = []string{"qemu-img", op}, said
	return backend.Because(backend.ErrIO, "%s %s: %w", op, path, &short)
}

// firstLine is where a tool's text says what is wrong.
func firstLine(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return clip(line)
}
