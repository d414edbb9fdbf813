package image

import (
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"domfs/backend"
	"domfs/backend/fault"

	"golang.org/x/sys/unix"
)

const (
	manifestVersion  = 1
	maxManifestBytes = 64 << 10
	maxManifests     = 1 << 16 // parsed ones that are kept
	maxDiskCount     = 1 << 12
)

// manifest is a snapshot's record beside its copy, as JSON. Times are RFC 3339 with
// nanoseconds in UTC; expires is absent for never.
type manifest struct {
	Version     int                   `json:"version"`
	Set         string                `json:"set"`
	Name        text                  `json:"name"`
	DomainName  text                  `json:"domain_name"`
	DomainUUID  text                  `json:"domain_uuid,omitempty"`
	Disk        manifestDisk          `json:"disk"`
	DiskCount   int                   `json:"disk_count"`
	Created     time.Time             `json:"created"`
	Consistency backend.Consistency   `json:"consistency"`
	State       backend.SnapshotState `json:"state"`
	Expires     *time.Time            `json:"expires,omitempty"`
	Hold        bool                  `json:"hold,omitempty"`
	Origin      text                  `json:"origin"` // path of the image, without symbolic links
	SizeBytes   int64                 `json:"size_bytes"`
	// Of a copy that is not raw, whose format is the disk's:
	GuestBytes int64          `json:"guest_bytes,omitempty"` // as the guest sees it
	Backing    []recordedFile `json:"backing,omitempty"`     // the files behind it, the nearest first
}

// manifestDisk is backend.Disk.
type manifestDisk struct {
	VDev          string       `json:"vdev"`
	Backend       text         `json:"backend,omitempty"`
	Format        text         `json:"format,omitempty"`
	Source        text         `json:"source"`
	Mode          backend.Mode `json:"mode"`
	CDROM         bool         `json:"cdrom,omitempty"`
	Script        text         `json:"script,omitempty"`
	BackendDomain text         `json:"backend_domain,omitempty"`
}

// text is bytes that need not be UTF-8, as names and paths need not. Where they are they
// are a JSON string, else {"base64": …}.
type text string

type encodedText struct {
	Base64 []byte `json:"base64"`
}

// MarshalJSON encodes t.
func (t text) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(t)) {
		return json.Marshal(string(t))
	}
	return json.Marshal(encodedText{[]byte(t)})
}

// UnmarshalJSON decodes what MarshalJSON encodes.
func (t *text) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err == nil {
		*t = text(s)
		return nil
	}
	var e encodedText
	if err := json.Unmarshal(b, &e); err != nil {
		return err
	}
	*t = text(e.Base64)
	return nil
}

func newManifest(m backend.SnapshotMeta, origin string, sizeBytes int64) *manifest {
	man := &manifest{
		Version:     manifestVersion,
		Set:         m.Set,
		Name:        text(m.Name),
		DomainName:  text(m.DomainName),
		DomainUUID:  text(m.DomainUUID),
		DiskCount:   m.DiskCount,
		Created:     m.Created.UTC(),
		Consistency: m.Consistency,
		State:       m.State,
		Hold:        m.Hold,
		Origin:      text(origin),
		SizeBytes:   sizeBytes,
		Disk: manifestDisk{
			VDev:          m.Disk.VDev,
			Backend:       text(m.Disk.Backend),
			Format:        text(m.Disk.Format),
			Source:        text(m.Disk.Source),
			Mode:          m.Disk.Mode,
			CDROM:         m.Disk.CDROM,
			Script:        text(m.Disk.Script),
			BackendDomain: text(m.Disk.BackendDomain),
		},
	}
	if !m.Expires.IsZero() {
		at := m.Expires.UTC()
		man.Expires = &at
	}
	return man
}

// format is the copy's.
func (m *manifest) format() string {
	if m.Disk.Format == "" {
		return backend.FormatRaw
	}
	return string(m.Disk.Format)
}

// guestBytes is the size that the guest sees.
func (m *manifest) guestBytes() int64 {
	if m.format() == backend.FormatRaw {
		return m.SizeBytes
	}
	return m.GuestBytes
}

func (m *manifest) meta() backend.SnapshotMeta {
	meta := backend.SnapshotMeta{
		Set:         m.Set,
		Name:        string(m.Name),
		DomainName:  string(m.DomainName),
		DomainUUID:  string(m.DomainUUID),
		DiskCount:   m.DiskCount,
		Created:     m.Created,
		Consistency: m.Consistency,
		State:       m.State,
		Hold:        m.Hold,
		Disk: backend.Disk{
			VDev:          m.Disk.VDev,
			Backend:       string(m.Disk.Backend),
			Format:        string(m.Disk.Format),
			Source:        string(m.Disk.Source),
			Mode:          m.Disk.Mode,
			CDROM:         m.Disk.CDROM,
			Script:        string(m.Disk.Script),
			BackendDomain: string(m.Disk.BackendDomain),
		},
	}
	if m.Expires != nil {
		meta.Expires = *m.Expires
	}
	return meta
}

// parseManifest reads the manifest of the disk vdev in a set. Everything that others
// rely on is checked.
func parseManifest(b []byte, set, vdev string) (*manifest, error) {
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, backend.Because(backend.ErrCorrupt, "it is no manifest (%v)", err)
	}
	if m.Version != manifestVersion {
		return nil, backend.Because(backend.ErrUnsupported, "it is of version %d, made by another version of domfs; only %d can be read", m.Version, manifestVersion)
	}
	return &m, m.check(set, vdev)
}

func (m *manifest) check(set, vdev string) error {
	bad := func(what string) error {
		return backend.Because(backend.ErrCorrupt, "%s", what)
	}
	name := string(m.Name)
	switch {
	case m.Set != set:
		return bad(fmt.Sprintf("set is %q and not %q as its folder", m.Set, set))
	case m.Disk.VDev != vdev:
		return bad(fmt.Sprintf("disk.vdev is %q and not %q as its file", m.Disk.VDev, vdev))
	case name == "" || name == "." || name == ".." || len(name) > 255 || strings.ContainsAny(name, "/\x00"):
		return bad(fmt.Sprintf("name %q cannot be a file name", name))
	case strings.ContainsAny(string(m.DomainName), "/\x00") || len(m.DomainName) > 4096:
		return bad("domain_name cannot be a file name")
	case m.DiskCount < 1 || m.DiskCount > maxDiskCount:
		return bad(fmt.Sprintf("disk_count is %d", m.DiskCount))
	case m.SizeBytes < 0:
		return bad(fmt.Sprintf("size_bytes is %d", m.SizeBytes))
	case !strings.HasPrefix(string(m.Origin), "/"):
		return bad(fmt.Sprintf("origin %q is no absolute path", m.Origin))
	case m.GuestBytes < 0:
		return bad(fmt.Sprintf("guest_bytes is %d", m.GuestBytes))
	case len(m.Backing) >= maxChain:
		return bad(fmt.Sprintf("backing has %d files", len(m.Backing)))
	case m.format() == backend.FormatRaw && (m.GuestBytes != 0 || len(m.Backing) != 0):
		return bad("a raw copy has guest_bytes or backing")
	}
	for _, f := range m.Backing {
		if !strings.HasPrefix(string(f.Path), "/") {
			return bad(fmt.Sprintf("backing has %q, which is no absolute path", f.Path))
		}
	}
	switch m.State {
	case backend.SnapshotPending, backend.SnapshotFilling, backend.SnapshotActive, backend.SnapshotInvalid, backend.SnapshotRemoving:
	default:
		return bad(fmt.Sprintf("state is %q", m.State))
	}
	switch m.Consistency {
	case "", backend.ConsistencyOff, backend.ConsistencyFrozen, backend.ConsistencyPaused, backend.ConsistencyCrash, backend.ConsistencyCrashPerDisk:
	default:
		return bad(fmt.Sprintf("consistency is %q", m.Consistency))
	}
	return nil
}

// write puts the manifest into its set's folder, in place of the one that may be there,
// at once and durably. op is what fault points are named after.
func (m *manifest) write(set *dir, op string) error {
	path := filepath.Join(set.path, m.Disk.VDev+manifestSuffix)
	if err := m.check(m.Set, m.Disk.VDev); err != nil {
		return backend.Because(backend.ErrInvalid, "write %s: %w", path, err)
	}
	b, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return backend.Because(backend.ErrInvalid, "write %s: %w", path, err)
	}
	b = append(b, '\n')
	if len(b) > maxManifestBytes {
		return backend.Because(backend.ErrInvalid, "write %s: it would have %d bytes, more than %d", path, len(b), maxManifestBytes)
	}
	temp := tempName(m.Disk.VDev + manifestSuffix)
	if err := set.unlink(temp); err != nil {
		return err
	}
	f, err := set.open(temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o400)
	if err != nil {
		return failed("write", path, err)
	}
	fault.Point("image." + op + ".manifest-created")
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		err = failed("write", path, err)
		return also(err, set.unlink(temp))
	}
	fault.Point("image." + op + ".manifest-written")
	if err := set.rename(temp, m.Disk.VDev+manifestSuffix); err != nil {
		return also(err, set.unlink(temp))
	}
	fault.Point("image." + op + ".manifest-renamed")
	if err := set.sync(); err != nil {
		return err
	}
	fault.Point("image." + op + ".manifest-durable")
	return nil
}

// tempName is the name that a file has until it is complete. No set or disk can be
// named so.
func tempName(name string) string { return "." + name + tempSuffix }

// readManifest reads a manifest, from memory if the file is unchanged. It must not be
// changed.
func (s *Store) readManifest(set *dir, setName, vdev string) (*manifest, error) {
	path := filepath.Join(set.path, vdev+manifestSuffix)
	st, err := set.stat(vdev + manifestSuffix)
	if err != nil {
		return nil, failed("read", path, err)
	}
	s.mu.Lock()
	m, ok := s.manifests[versionOf(st)]
	s.mu.Unlock()
	if ok && m == nil {
		return nil, fmt.Errorf("%s: %w", path, errDamaged)
	}
	// A link to one file from two places must not pass for both.
	if ok && m.Set == setName && m.Disk.VDev == vdev {
		return m, nil
	}
	f, err := set.open(vdev+manifestSuffix, unix.O_RDONLY, 0)
	if err != nil {
		return nil, failed("read", path, err)
	}
	defer f.Close()
	if st, err = statFile(f, path); err != nil {
		return nil, err
	}
	version := versionOf(st)
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > maxManifestBytes {
		err = backend.Because(backend.ErrCorrupt, "it is no regular file of at most %d bytes", maxManifestBytes)
	} else {
		var b []byte
		if b, err = io.ReadAll(io.LimitReader(f, maxManifestBytes)); err != nil {
			return nil, failed("read", path, err)
		}
		m, err = parseManifest(b, setName, vdev)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.manifests) >= maxManifests {
		clear(s.manifests)
	}
	// Stamps are coarse, and inode numbers used again: another manifest may look
	// the same until the clock has moved on.
	settled := time.Since(time.Unix(0, version.ctime)) > settleTime
	if err != nil {
		if settled {
			s.manifests[version] = nil
		}
		s.warnLocked(path, "snapshot's manifest cannot be used: remove it and its image, or restore it", err)
		return nil, fmt.Errorf("%s: %w: %w", path, errDamaged, err)
	}
	if settled {
		s.manifests[version] = m
	}
	return m, nil
}

// errDamaged says that a manifest is there but cannot be used.
var errDamaged = backend.Because(backend.ErrCorrupt, "manifest cannot be used")
