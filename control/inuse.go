package control

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"domfs/backend"
)

// Whether a guest uses a disk, its host has to find out before it asks for the disk: a Linux guest since 5.16 gives a disk away that it has
// mounted, and what was not written yet is lost. What can be known is in the bytes:
//
//   - nothing on it (both ends are zero): not used;
//   - a filesystem whose driver can tell (backend.UseTeller): what it says;
//   - a partition table: as its partitions;
//   - anything else (a physical volume, swap, an encrypted disk, another filesystem) looks the same whether it is used or not. It is taken
//     for used: "never a disk in use" outweighs the trouble, and the way by hand stays.
//
// A guest that writes while one looks uses it, too. What cannot be seen is a filesystem that is mounted read-only, and who is about to
// mount one.

// endsBytes is how much of both ends is to be zero of a disk with nothing on it: all that blkid knows, and what partitioning and
// volume managers write, begins or ends there.
const endsBytes = 1 << 20

// stubBytes is the size up to which a partition is no more than an extended one's stub.
const stubBytes = 1 << 10

// biosBoot is the type of a GPT partition that holds a boot loader's code, which nobody has open.
const biosBoot = "21686148-6449-6e6f-744e-656564454649"

// usage is what was found, of one thing at least.
type usage struct {
	use backend.Use
	why string // of InUse and UseUnknown: "ext4 on xvdb/p1 is mounted"
}

// worse is the one of both that counts.
func (u usage) worse(o usage) usage {
	rank := map[backend.Use]int{backend.Unused: 0, backend.UseUnknown: 1, backend.InUse: 2}
	if rank[o.use] > rank[u.use] {
		return o
	}
	return u
}

// looker looks at one disk's bytes.
type looker struct {
	h        *Host
	ctx      context.Context
	readOnly bool // the guest cannot write to it: no mount leaves a trace
}

// look opens a volume and says whether its guest uses it.
func (h *Host) look(ctx context.Context, k backend.Disk, v backend.Volume) (usage, error) {
	st := h.stores[v.Store]
	if st == nil {
		return usage{backend.UseUnknown, "nothing is known of what is on it"}, nil
	}
	// Its slot is left behind with a device that does not answer.
	return askWithin(ctx, h, "volume "+v.Store+" "+v.ID, func(ctx context.Context) (usage, error) {
		d, err := st.Open(ctx, v)
		if err != nil {
			return usage{}, err
		}
		defer d.Close()
		l := &looker{h: h, ctx: ctx, readOnly: k.Mode == backend.ReadOnly}
		return l.look(d, k.VDev, 0)
	})
}

func (l *looker) look(d backend.Device, name string, depth int) (usage, error) {
	if err := l.ctx.Err(); err != nil {
		return usage{}, contextError(l.ctx, "looking at "+name)
	}
	if l.h.o.Prober == nil {
		return usage{backend.UseUnknown, "what is on " + name + " is not known"}, nil
	}
	c, err := l.h.o.Prober.Probe(d)
	if err != nil {
		return usage{}, fmt.Errorf("%s: %w", name, err)
	}
	if c.Type == "" {
		return l.nothing(d, name)
	}
	for _, layout := range l.h.o.Layouts {
		if slices.Contains(layout.Types(), c.Type) && depth < maxPartDepth {
			return l.table(layout, c, d, name, depth)
		}
	}
	for _, f := range l.h.o.Filesystems {
		if t, ok := f.(backend.UseTeller); ok && slices.Contains(f.Types(), c.Type) {
			u, why, err := t.Use(d)
			if err != nil {
				return usage{}, fmt.Errorf("%s: %w", name, err)
			}
			if u == backend.Unused && l.readOnly {
				u, why = backend.UseUnknown, "may be mounted, and a guest that can only read leaves no trace"
			}
			return usage{u, c.Type + " on " + name + " " + why}, nil
		}
	}
	return usage{backend.UseUnknown, c.Type + " on " + name + " may be in use, and only the guest itself knows"}, nil
}

// nothing looks whether there really is nothing.
func (l *looker) nothing(d backend.Device, name string) (usage, error) {
	n := min(d.Size(), endsBytes)
	b := make([]byte, n)
	for _, off := range []int64{0, d.Size() - n} {
		if got, err := d.ReadAt(b, off); int64(got) < n {
			return usage{}, fmt.Errorf("%s: %w", name, err)
		}
		if slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) {
			return usage{backend.UseUnknown, "what is on " + name + " is not known, and may be in use"}, nil
		}
	}
	return usage{use: backend.Unused}, nil
}

func (l *looker) table(layout backend.Layout, c backend.Content, d backend.Device, name string, depth int) (usage, error) {
	parts, err := layout.Parts(d)
	if err != nil {
		return usage{backend.UseUnknown, fmt.Sprintf("the %s partition table on %s is not understood (%v)", c.Type, name, err)}, nil
	}
	u := usage{use: backend.Unused}
	for _, p := range distinct(parts) {
		part := name + "/p" + strconv.Itoa(p.Number)
		switch {
		case p.Err != nil:
			u = u.worse(usage{backend.UseUnknown, fmt.Sprintf("%s cannot be read (%v)", part, p.Err)})
			continue
		case p.Type == biosBoot || p.Device.Size() <= stubBytes:
			continue
		}
		found, err := l.look(p.Device, part, depth+1)
		if err != nil {
			return usage{}, err
		}
		if u = u.worse(found); u.use == backend.InUse {
			return u, nil
		}
	}
	return u, nil
}
