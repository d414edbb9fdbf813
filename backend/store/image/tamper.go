package image

import (
	"errors"
	"fmt"
	"os"

	"domfs/backend"
)

// writableByOthers are the permissions to write of all but the owner. Whatever an ACL permits to others, its mask
// shows in the group's (acl(5)).
const writableByOthers = 0o022

// refuseTampering refuses an image that somebody else could change while qemu-img works on it. qemu-img reads the
// headers again, after they were checked here, and opens as root what they name by then: an external data
// file, which it would even resize. It begins only if that cannot happen:
//
//   - Nobody has a file of the chain open for writing: a read lease proves that for this host.
//   - Nobody can open one, for none is writable but by root and the daemon's own user. That is looked at
//     under the lease: who is let in by older permissions is waiting for the lease by then, which tells of it.
//   - Each header says under the lease what it said before.
//
// The lease is given up in the end, as qemu-img could not write under it; what was found about the
// owners and modes stays true, but for what root does.
func (s *Store) refuseTampering(c chain) error {
	for i := range c {
		if err := s.refuseTamperingWith(&c[i]); err != nil {
			return fmt.Errorf("resize %s: %w", c[0].path, err)
		}
	}
	return nil
}

func (s *Store) refuseTamperingWith(k *chainFile) error {
	image := &guardedImage{path: k.path, f: k.f, seen: versionOf(k.st)}
	defer image.release(s)
	// Who may write comes first: that nobody does at this moment would not help.
	if err := checkWriters(k); err != nil {
		return err
	}
	if err := s.keep(image); err != nil {
		return err
	}
	switch {
	case image.kept == unkept:
		who := image.writer
		if who == "" {
			who = s.writerOf(image.seen.fileID)
		}
		if who == "" {
			who = unknownHolder
		}
		return backend.Because(backend.ErrBusy, "%s is open for writing by %s: shut its domain down, or end that process", k.path, who)
	case image.kept == watched && os.Geteuid() != 0:
		return backend.Because(backend.ErrPermission, "there are no leases on %s, and only root can see who has it open for writing: run domfs as root", k.path)
	}
	if err := checkWriters(k); err != nil {
		return err
	}
	if k.format != nil {
		st, err := statFile(k.f, k.path)
		if err != nil {
			return err
		}
		header, err := k.format.Header(newDevice(k.f, k.path, st.Size))
		if err != nil {
			return fmt.Errorf("%s: %w", k.path, err)
		}
		if header != k.header {
			return backend.Because(backend.ErrStale, "%s was changed meanwhile: try again", k.path)
		}
	}
	err := image.broken()
	if errors.Is(err, backend.ErrBusy) {
		return backend.Because(backend.ErrBusy, "%s is just being opened for writing: shut its domain down, or end what opens it", k.path)
	}
	return err
}

// checkWriters refuses a file that others than root and our own user may open for writing.
func checkWriters(k *chainFile) error {
	st, err := statFile(k.f, k.path)
	if err != nil {
		return err
	}
	var who string
	switch {
	case st.Uid != 0 && int(st.Uid) != os.Geteuid():
		who = fmt.Sprintf("user %d, whom it belongs to", st.Uid)
	case st.Mode&writableByOthers != 0:
		who = fmt.Sprintf("others than its owner, by its mode %04o", st.Mode&0o7777)
	default:
		return nil
	}
	path := shellWord(k.path, "FILE")
	return backend.Because(backend.ErrPermission, "%s can be written to by %s, while qemu-img, which opens whatever the image names by then, works on it: "+
		"with its domain off, run chown root %s and chmod go-w %s, or let libvirt's dynamic ownership do so", k.path, who, path, path)
}
