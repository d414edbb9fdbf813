package lvm

import (
	"strconv"
	"strings"

	"domfs/backend"
)

// tpoolLayer is the suffix of the UUID of the device that a pool really is; the pool's own is linear, and is only there
// while the pool itself is active.
const tpoolLayer = "tpool"

// poolMetadataBlock is the size of a block of a pool's metadata, in bytes.
const poolMetadataBlock = 4096

// poolStatus is what the kernel says of a thin pool (Documentation/admin-guide/device-mapper/thin-provisioning.rst, Status).
type poolStatus struct {
	usedMetadata, metadata int64  // blocks of poolMetadataBlock
	usedData, data         int64  // chunks of the pool
	mode                   string // rw, ro, out_of_data_space
	needsCheck             bool
	failed                 bool // nothing else is known
}

// poolStatusOf is the status of a pool's device; ok is false where there is none, as the pool is not active.
func poolStatusOf(h *host, pool *lv) (poolStatus, bool) {
	dev := h.dm.layer(pool, tpoolLayer)
	if dev == nil || len(dev.Targets) != 1 || dev.Targets[0].Type != segThinPool {
		return poolStatus{}, false
	}
	return parsePoolStatus(dev.Targets[0].Status)
}

// parsePoolStatus reads the status of a target thin-pool: transaction, used/all metadata blocks, used/all data blocks, held root,
// mode, discards, what is done when it is full, needs_check, low water mark.
func parsePoolStatus(params string) (poolStatus, bool) {
	fields := strings.Fields(params)
	if len(fields) == 1 && (fields[0] == "Fail" || fields[0] == "Error") {
		return poolStatus{failed: true}, true
	}
	if len(fields) < 5 {
		return poolStatus{}, false
	}
	p := poolStatus{mode: fields[4]}
	var ok1, ok2 bool
	p.usedMetadata, p.metadata, ok1 = ratio(fields[1])
	p.usedData, p.data, ok2 = ratio(fields[2])
	for _, f := range fields[5:] {
		p.needsCheck = p.needsCheck || f == "needs_check"
	}
	return p, ok1 && ok2
}

func ratio(text string) (used, all int64, ok bool) {
	a, b, found := strings.Cut(text, "/")
	used, err1 := strconv.ParseInt(a, 10, 64)
	all, err2 := strconv.ParseInt(b, 10, 64)
	return used, all, found && err1 == nil && err2 == nil && 0 <= used && used <= all && all > 0
}

// percent is how much of all is used, in percent, rounded down; never 100 while there is something left.
func percent(used, all int64) int64 {
	if all <= 0 {
		return 0
	}
	return int64(float64(used) / float64(all) * 100)
}

// checkPool says why a thin pool has no room for what (a snapshot, growth): it is nearly full, or needs a hand.
func checkPool(h *host, g *vg, name, what string) error {
	id := g.name + "/" + name
	pool := g.lv(name)
	if pool == nil {
		return backend.Because(backend.ErrIO, "the thin pool %s of a volume is not in LVM's report", id)
	}
	p, ok := poolStatusOf(h, pool)
	switch {
	case !ok:
		return backend.Because(backend.ErrUnsupported, "the thin pool %s is not active, and what room it has is not known: activate it with lvchange -ay %s", id, id)
	case p.failed:
		return backend.Because(backend.ErrIO, "the thin pool %s has failed: repair it with lvconvert --repair %s", id, id)
	case p.needsCheck:
		return backend.Because(backend.ErrIO, "the thin pool %s is marked as to be checked, and takes no changes until it was: deactivate its volumes, then lvconvert --repair %s", id, id)
	case p.mode == "ro":
		return backend.Because(backend.ErrReadOnly, "the thin pool %s has become read-only, as its metadata is full or damaged (%d of %d blocks): see lvmthin(7)", id, p.usedMetadata, p.metadata)
	case p.mode == "out_of_data_space" || percent(p.usedData, p.data) >= maxPoolDataPercent:
		return backend.Because(backend.ErrNoSpace, "the data of thin pool %s is %d %% full (%d of %d chunks, %s free), and %s is refused from %d %%: extend it with lvextend, or remove snapshots",
			id, percent(p.usedData, p.data), p.usedData, p.data, sizeText((p.data-p.usedData)*pool.chunkBytes), what, maxPoolDataPercent)
	case percent(p.usedMetadata, p.metadata) >= maxPoolMetadataPercent:
		return backend.Because(backend.ErrNoSpace, "the metadata of thin pool %s is %d %% full (%d of %d blocks, %s free), and %s is refused from %d %%: extend it with lvextend --poolmetadatasize, or remove snapshots",
			id, percent(p.usedMetadata, p.metadata), p.usedMetadata, p.metadata, sizeText((p.metadata-p.usedMetadata)*poolMetadataBlock), what, maxPoolMetadataPercent)
	}
	return nil
}
