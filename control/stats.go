package control

import "sync"

type counters struct {
	mu sync.Mutex
	m  map[string]int64 // guarded by mu
}

func (c *counters) add(name string, n int64) {
	c.mu.Lock()
	if c.m == nil {
		c.m = map[string]int64{}
	}
	c.m[name] += n
	c.mu.Unlock()
}

// statNames are the counters that are always there, if only as 0.
var statNames = []string{"changes_extend", "changes_failed", "changes_remove", "changes_rename", "changes_resize", "changes_snapshot",
	"events", "failures", "fills_done", "fills_failed", "forecasts", "inventory_reads", "snapshots_invalid", "volume_cache_hits", "volume_opens", "filesystem_opens"}

// Stats are counters for .domfs/stats: since the start, but for those that end in _now.
func (h *Host) Stats() map[string]int64 {
	out := map[string]int64{}
	for _, n := range statNames {
		out[n] = 0
	}
	h.stats.mu.Lock()
	for n, v := range h.stats.m {
		out[n] = v
	}
	h.stats.mu.Unlock()
	out["disks_open_now"], out["volumes_acquired_now"] = h.volumes.counts()
	out["fills_now"] = h.fills.count()
	return out
}
