package lvm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"domfs/backend"
)

// Bounds of what LVM reports. A host has tens of VGs, and a VG's metadata area holds some thousand LVs.
const (
	maxVGs      = 4096
	maxLVs      = 1 << 17
	maxPVs      = 1 << 16
	maxTags     = 1024    // of one LV
	maxNotices  = 64      // lines that begin with a brace and are no report
	maxTagBytes = 1 << 16 // of all tags of one LV
)

// What of each object is asked for, with the names of lvmreport(7).
var (
	vgFields = []string{"vg_name", "vg_uuid", "vg_size", "vg_free", "vg_extent_size", "vg_seqno", "vg_permissions", "vg_exported",
		"vg_shared", "vg_clustered", "vg_missing_pv_count", "vg_tags", "max_lv", "lv_count", "snap_count", "vg_mda_free", "vg_mda_size"}
	pvFields = []string{"pv_name", "pv_uuid", "pv_size", "pv_free", "pv_missing", "pv_allocatable", "pv_duplicate"}
	lvFields = []string{"lv_name", "lv_uuid", "lv_attr", "lv_size", "lv_time", "lv_tags", "lv_skip_activation", "lv_health_status", "lv_merging",
		"lv_metadata_size", "lv_when_full", "origin", "origin_uuid", "origin_size", "pool_lv", "pool_lv_uuid", "data_lv", "metadata_lv"}
	segFields = []string{"lv_uuid", "seg_start", "segtype", "stripes", "stripe_size", "data_copies", "chunk_size", "thin_id"}
)

// reportConfig overrides what an administrator may have configured of reports (lvm.conf(5)).
const reportConfig = `report{time_format="%s" list_item_separator="," mark_hidden_devices=1 prefixes=0 quoted=1 compact_output=0 compact_output_cols=""}`

// reportArgs are the arguments of lvm for its report. --readonly takes no lock and never asks
// device-mapper, which may wait for a suspended device.
// without are fields that this host's LVM does not know.
func reportArgs(without map[string]bool) []string {
	args := []string{"fullreport", "--readonly", "--all", "--reportformat", "json", "--units", "b", "--nosuffix", "--binary", "--config", reportConfig}
	for _, r := range []struct {
		name   string
		fields []string
	}{{"vg", vgFields}, {"pv", pvFields}, {"lv", lvFields}, {"seg", segFields}, {"pvseg", []string{"pv_uuid"}}} {
		fields := slices.DeleteFunc(slices.Clone(r.fields), func(field string) bool { return without[field] })
		args = append(args, "--configreport", r.name, "-o", strings.Join(fields, ","))
		if r.name == "pvseg" { // it cannot be left out
			args = append(args, "--select", `pvseg_size=0`)
		}
	}
	return args
}

// report is what LVM says of its VGs, and nothing of what device-mapper does.
type report struct {
	vgs []*vg // by name, then UUID
	lvs []*lv // of all VGs, hidden ones included, by VG, then name
}

// vg is a volume group.
type vg struct {
	name, uuid  string
	sizeBytes   int64
	freeBytes   int64 // of PVs that are present and may be allocated from
	extentBytes int64
	seqno       int64
	writeable   bool
	exported    bool
	shared      bool // or clustered: locks other than this host's are needed to change it
	missingPVs  int
	maxLVs      int64 // 0: no bound
	tags        []string
	// metadataFreeBytes and metadataBytes are of the PV's metadata area that has least room.
	metadataFreeBytes, metadataBytes int64
	pvs                              []pv
	lvs                              []*lv
	// twin is another VG of this name: neither can be named.
	twin bool
}

// pv is a physical volume.
type pv struct {
	name, uuid  string // name is "[unknown]" of one that is missing
	sizeBytes   int64
	freeBytes   int64
	missing     bool
	allocatable bool
	duplicate   bool
}

// lv is a logical volume.
type lv struct {
	vg         *vg
	name, uuid string // name without the brackets of a hidden one
	hidden     bool   // a part of another LV
	attr       string // as in lvs(8); what device-mapper would tell is in none of it
	// sizeBytes is what it takes in extents or in its pool; of a thick snapshot this is its space for
	// copies on write, and originBytes is what it shows.
	sizeBytes   int64
	originBytes int64
	created     time.Time // zero if unknown
	tags        []string
	writeable   bool
	skip        bool // not activated unless told to (-K)
	partial     bool // a PV that it lies on is missing
	merging     bool // into its origin, or a snapshot into it
	// origin is the LV in the same VG that it is a snapshot of, thick or thin; "" if none.
	origin, originUUID string
	// external tells that origin is not in the same pool: a volume that began as a copy, and no snapshot.
	external bool
	// pool is the thin pool that it lies in, "" if none.
	pool, poolUUID     string
	dataLV, metadataLV string // of a pool
	metadataBytes      int64  // of a pool
	errorWhenFull      bool   // of a pool: it refuses writes at once instead of letting them wait

	// Of its first segment.
	segtype    string // linear, striped, raid1, thin, thin-pool, …
	stripes    int64
	copies     int64 // of the data, 1 if there is but one
	chunkBytes int64 // of a thick snapshot or a thin pool
	thinID     int64 // in its pool; -1 if it is none
	segments   int

	// Of its last segment, which is what it grows by.
	lastSegtype     string
	lastStripes     int64
	lastStripeBytes int64 // of one stripe, before the next disk has its turn; 0 if there is but one
	// unevenStripes tells that segments have other stripes than the last one has.
	unevenStripes bool
}

// id is the LV's Volume.ID.
func (l *lv) id() string { return l.vg.name + "/" + l.name }

// path is the LV's node, which udev makes; it is there while a visible LV is active.
func (l *lv) path() string { return "/dev/" + l.id() }

func (l *lv) isThin() bool     { return l.segtype == segThin }
func (l *lv) isThinPool() bool { return l.segtype == segThinPool }

// isThick tells whether it is a classic snapshot, which keeps what its origin overwrites.
func (l *lv) isThick() bool { return l.origin != "" && !l.isThin() && l.originBytes > 0 && !l.hidden }

// isSnapshot tells whether it is a snapshot, of either kind.
func (l *lv) isSnapshot() bool {
	return l.isThick() || l.isThin() && l.origin != "" && !l.external && !l.hidden
}

// visibleBytes is the size of its block device.
func (l *lv) visibleBytes() int64 {
	if l.isThick() {
		return l.originBytes
	}
	return l.sizeBytes
}

// Segment types that matter here (lvmreport(7), segtype).
const (
	segThin     = "thin"
	segThinPool = "thin-pool"
)

// vg finds a VG by its name, nil if there is none.
func (r *report) vg(name string) *vg {
	for _, g := range r.vgs {
		if g.name == name {
			return g
		}
	}
	return nil
}

// lv finds an LV by its VG's name and its own; nil if there is none.
func (r *report) lv(vgName, name string) *lv {
	g := r.vg(vgName)
	if g == nil {
		return nil
	}
	return g.lv(name)
}

func (g *vg) lv(name string) *lv {
	i, ok := slices.BinarySearchFunc(g.lvs, name, func(l *lv, name string) int { return strings.Compare(l.name, name) })
	if !ok {
		return nil
	}
	return g.lvs[i]
}

// byID finds an LV by its Volume.ID; nil if there is none.
func (r *report) byID(id string) *lv {
	vgName, name, ok := strings.Cut(id, "/")
	if !ok {
		return nil
	}
	return r.lv(vgName, name)
}

// snapshotsOf lists the snapshots whose origin an LV is, hidden ones included.
func (r *report) snapshotsOf(origin *lv) []*lv {
	var found []*lv
	for _, l := range origin.vg.lvs {
		if l.origin == origin.name && l.isSnapshot() {
			found = append(found, l)
		}
	}
	return found
}

// value is a field: a string, or a number where LVM writes json_std; a list joined with commas.
type value string

// UnmarshalJSON takes any of them.
func (v *value) UnmarshalJSON(b []byte) error {
	switch {
	case len(b) > 0 && b[0] == '"':
		return json.Unmarshal(b, (*string)(v))
	case len(b) > 0 && b[0] == '[':
		var list []string
		if err := json.Unmarshal(b, &list); err != nil {
			return err
		}
		*v = value(strings.Join(list, ","))
	case string(b) == "null":
		*v = ""
	default:
		*v = value(b)
	}
	return nil
}

// row is an object of a report. LVM leaves out fields that it does not know where it does not refuse them.
type row map[string]value

func (r row) text(field string) string { return string(r[field]) }

// number is a field in its unit, the default where it has none: not every field applies to every object.
func (r row) number(field string, otherwise int64) int64 {
	text := strings.TrimSpace(string(r[field]))
	text = strings.TrimSuffix(strings.TrimSuffix(text, "B"), "b")
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return otherwise
	}
	return n
}

// yes is a field of --binary; older versions of LVM have the field's own name for true.
func (r row) yes(field string) bool {
	switch r[field] {
	case "", "0", "-1", "unknown":
		return false
	}
	return true
}

// list is a field with several values.
func (r row) list(field string) []string {
	text := r.text(field)
	if text == "" || len(text) > maxTagBytes {
		return nil
	}
	list := strings.Split(text, ",")
	return list[:min(len(list), maxTags)]
}

// document is the whole of a report, one group of reports for each VG.
type document struct {
	Report []struct {
		VG  []row `json:"vg"`
		PV  []row `json:"pv"`
		LV  []row `json:"lv"`
		Seg []row `json:"seg"`
	} `json:"report"`
}

// parseReport reads what `lvm fullreport` wrote to standard output.
func parseReport(out []byte) (*report, error) {
	doc, err := cutDocument(out)
	if err != nil {
		return nil, err
	}
	r := &report{}
	pvs := 0
	for _, group := range doc.Report {
		if len(group.VG) != 1 || group.VG[0].text("vg_name") == "" {
			continue // PVs and the like that are in no VG
		}
		g := newVG(group.VG[0])
		for _, row := range group.PV {
			g.addPV(row)
		}
		segs := map[string]segment{}
		for _, row := range group.Seg {
			addSegment(segs, row)
		}
		for _, row := range group.LV {
			g.addLV(row, segs)
		}
		slices.SortStableFunc(g.lvs, func(a, b *lv) int { return strings.Compare(a.name, b.name) })
		for _, l := range g.lvs {
			if o := g.lv(l.origin); l.isThin() && o != nil {
				l.external = !o.isThin() || o.pool != l.pool
			}
		}
		r.vgs = append(r.vgs, g)
		r.lvs = append(r.lvs, g.lvs...)
		pvs += len(g.pvs)
		if len(r.vgs) > maxVGs || len(r.lvs) > maxLVs || pvs > maxPVs {
			return nil, backend.Because(backend.ErrUnsupported, "LVM reports more than %d VGs, %d LVs or %d PVs", maxVGs, maxLVs, maxPVs)
		}
	}
	slices.SortStableFunc(r.vgs, func(a, b *vg) int { return strings.Compare(a.name+"\x00"+a.uuid, b.name+"\x00"+b.uuid) })
	for i := 1; i < len(r.vgs); i++ {
		if r.vgs[i].name == r.vgs[i-1].name {
			r.vgs[i].twin, r.vgs[i-1].twin = true, true
		}
	}
	return r, nil
}

// cutDocument finds the report among the notices before and after it.
func cutDocument(out []byte) (*document, error) {
	rest := out
	for range maxNotices {
		i := 0
		if !bytes.HasPrefix(bytes.TrimLeft(rest, " \t\r\n"), []byte("{")) {
			if i = lineWithBrace(rest); i < 0 {
				break
			}
		}
		dec := json.NewDecoder(bytes.NewReader(rest[i:]))
		var doc document
		err := dec.Decode(&doc)
		if err == nil && doc.Report != nil {
			return &doc, nil
		}
		if errors.Is(err, io.ErrUnexpectedEOF) && bytes.Contains(rest[i:], []byte(`"report"`)) {
			return nil, backend.Because(backend.ErrIO, "LVM's report ends in its midst, after %d bytes", len(out))
		}
		end := bytes.IndexByte(rest[i:], '{') + i + 1
		rest = rest[end:]
		if nl := bytes.IndexByte(rest, '\n'); nl >= 0 {
			rest = rest[nl:]
		} else {
			break
		}
	}
	const most = 200
	text := strings.Join(strings.Fields(string(out[:min(len(out), most)])), " ")
	return nil, backend.Because(backend.ErrIO, "LVM wrote no report, but %q", text)
}

// lineWithBrace is where a line begins whose first character is a brace; -1 if there is none.
func lineWithBrace(b []byte) int {
	off := 0
	for line := range bytes.Lines(b) {
		if bytes.HasPrefix(bytes.TrimLeft(line, " \t"), []byte("{")) {
			return off
		}
		off += len(line)
	}
	return -1
}

func newVG(r row) *vg {
	return &vg{
		name:              r.text("vg_name"),
		uuid:              r.text("vg_uuid"),
		sizeBytes:         r.number("vg_size", 0),
		extentBytes:       r.number("vg_extent_size", 0),
		seqno:             r.number("vg_seqno", 0),
		writeable:         !strings.HasPrefix(r.text("vg_permissions"), "read-only"),
		exported:          r.yes("vg_exported"),
		shared:            r.yes("vg_shared") || r.yes("vg_clustered"),
		missingPVs:        int(min(r.number("vg_missing_pv_count", 0), math.MaxInt32)),
		maxLVs:            r.number("max_lv", 0),
		tags:              r.list("vg_tags"),
		metadataFreeBytes: r.number("vg_mda_free", 0),
		metadataBytes:     r.number("vg_mda_size", 0),
	}
}

func (g *vg) addPV(r row) {
	p := pv{
		name:        r.text("pv_name"),
		uuid:        r.text("pv_uuid"),
		sizeBytes:   r.number("pv_size", 0),
		freeBytes:   r.number("pv_free", 0),
		missing:     r.yes("pv_missing"),
		allocatable: r.yes("pv_allocatable"),
		duplicate:   r.yes("pv_duplicate"),
	}
	if len(g.pvs) > maxPVs {
		return
	}
	g.pvs = append(g.pvs, p)
	if p.allocatable && !p.missing && p.freeBytes <= math.MaxInt64-g.freeBytes {
		g.freeBytes += p.freeBytes
	}
}

// segment is the first segment of an LV, the last one, how many it has, and whether their stripes differ.
type segment struct {
	row, last       row
	start, lastFrom int64
	count           int
	uneven          bool
}

func addSegment(segs map[string]segment, r row) {
	uuid, start := r.text("lv_uuid"), r.number("seg_start", 0)
	seg, ok := segs[uuid]
	seg.uneven = seg.uneven || ok && (r.text("stripes") != seg.row.text("stripes") || r.text("stripe_size") != seg.row.text("stripe_size"))
	if !ok || start < seg.start {
		seg.row, seg.start = r, start
	}
	if !ok || start >= seg.lastFrom {
		seg.last, seg.lastFrom = r, start
	}
	seg.count++
	segs[uuid] = seg
}

func (g *vg) addLV(r row, segs map[string]segment) {
	name := r.text("lv_name")
	seg := segs[r.text("lv_uuid")]
	l := &lv{
		vg:            g,
		name:          strings.TrimSuffix(strings.TrimPrefix(name, "["), "]"),
		uuid:          r.text("lv_uuid"),
		hidden:        strings.HasPrefix(name, "["),
		attr:          r.text("lv_attr"),
		sizeBytes:     r.number("lv_size", 0),
		originBytes:   r.number("origin_size", 0),
		tags:          r.list("lv_tags"),
		writeable:     true,
		skip:          r.yes("lv_skip_activation"),
		merging:       r.yes("lv_merging"),
		origin:        unbracketed(r.text("origin")),
		originUUID:    r.text("origin_uuid"),
		pool:          unbracketed(r.text("pool_lv")),
		poolUUID:      r.text("pool_lv_uuid"),
		dataLV:        unbracketed(r.text("data_lv")),
		metadataLV:    unbracketed(r.text("metadata_lv")),
		metadataBytes: r.number("lv_metadata_size", 0),
		errorWhenFull: r.text("lv_when_full") == "error",
		segtype:       seg.row.text("segtype"),
		stripes:       seg.row.number("stripes", 1),
		copies:        seg.row.number("data_copies", 1),
		chunkBytes:    seg.row.number("chunk_size", 0),
		thinID:        seg.row.number("thin_id", -1),
		segments:      seg.count,
		lastSegtype:   seg.last.text("segtype"),
		lastStripes:   seg.last.number("stripes", 1),

		lastStripeBytes: seg.last.number("stripe_size", 0),
		unevenStripes:   seg.uneven,
	}
	if l.name == "" || l.uuid == "" {
		return
	}
	l.partial = r.text("lv_health_status") == "partial" || len(l.attr) > 8 && l.attr[8] == 'p'
	if seconds := r.number("lv_time", 0); seconds > 0 && seconds < math.MaxInt32*64 {
		l.created = time.Unix(seconds, 0).UTC()
	}
	if len(l.attr) > 1 && (l.attr[1] == 'r' || l.attr[1] == 'R') {
		l.writeable = false
	}
	g.lvs = append(g.lvs, l)
}

func unbracketed(name string) string {
	return strings.TrimSuffix(strings.TrimPrefix(name, "["), "]")
}

// String is for messages.
func (g *vg) String() string { return fmt.Sprintf("VG %s", g.name) }
