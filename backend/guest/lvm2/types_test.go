package lvm2

import (
	"fmt"
	"strings"
)

// The texts of segments, as LVM writes them.

func stripedText(start, count, chunkSectors int, places ...string) string {
	return fmt.Sprintf("start_extent = %d\nextent_count = %d\ntype = \"striped\"\nstripe_count = %d\nstripe_size = %d\nstripes = [\n%s\n]", start, count, len(places), chunkSectors, strings.Join(places, ",\n"))
}

func place(on string, at int) string { return fmt.Sprintf("%q, %d", on, at) }

func mirrorText(count int, more string, places ...string) string {
	return fmt.Sprintf("start_extent = 0\nextent_count = %d\ntype = \"mirror\"\nmirror_count = %d\n%s\nmirrors = [\n%s\n]", count, len(places), more, strings.Join(places, ",\n"))
}

// raidText is a raid of the legs NAME_rimage_0 …, with superblocks in NAME_rmeta_0 ….
func raidText(kind, name string, count, legs int, more string) string {
	var list []string
	for i := range legs {
		if kind == "raid0" {
			list = append(list, fmt.Sprintf("\"%s_rimage_%d\"", name, i))
		} else {
			list = append(list, fmt.Sprintf("\"%s_rmeta_%d\", \"%s_rimage_%d\"", name, i, name, i))
		}
	}
	counted, key := "device_count", "raids"
	switch kind {
	case "raid0":
		counted, key = "stripe_count", "raid0_lvs"
	case "raid0_meta":
		counted = "stripe_count"
	}
	return fmt.Sprintf("start_extent = 0\nextent_count = %d\ntype = \"%s\"\n%s = %d\n%s\n%s = [\n%s\n]", count, kind, counted, legs, more, key, strings.Join(list, ",\n"))
}

// layout hands out extents of pv0, pv1 … so that nothing overlaps.
type layout struct {
	next []int
	b    strings.Builder
}

// linear adds a volume of count extents on a physical volume, and says where on it.
func (l *layout) linear(name, status string, pv, count int) int {
	at := l.next[pv]
	l.next[pv] += count
	l.b.WriteString(volumeText(name, status, linear(0, count, fmt.Sprintf("pv%d", pv), at)))
	return at
}

// raid adds a raid with its legs, each on a physical volume of its own where there are enough. Superblocks have one extent.
func (l *layout) raid(kind, name string, count, legs, legExtents int, more string) {
	for i := range legs {
		if kind != "raid0" {
			l.linear(fmt.Sprintf("%s_rmeta_%d", name, i), hidden, i%len(l.next), 1)
		}
		l.linear(fmt.Sprintf("%s_rimage_%d", name, i), hidden, i%len(l.next), legExtents)
	}
	l.b.WriteString(volumeText(name, shown, raidText(kind, name, count, legs, more)))
}

// everyType is a group of two physical volumes with volumes of each type. Those whose names begin with u cannot be read.
func everyType() string {
	l := &layout{next: make([]int, 2)}
	l.linear("lin", shown, 0, 3)
	l.b.WriteString(volumeText("str", shown, stripedText(0, 4, 16, place("pv0", l.next[0]), place("pv1", l.next[1]))))
	l.next[0] += 2
	l.next[1] += 2
	l.linear("mir_mimage_0", hidden, 0, 2)
	l.linear("mir_mimage_1", hidden, 1, 2)
	l.linear("mir_mlog", hidden, 1, 1)
	l.b.WriteString(volumeText("mir", shown, mirrorText(2, "mirror_log = \"mir_mlog\"\nregion_size = 64", place("mir_mimage_0", 0), place("mir_mimage_1", 0))))
	l.raid("raid1", "rone", 2, 2, 2, "region_size = 64")
	l.raid("raid0", "rzero", 4, 2, 2, "stripe_size = 32")
	l.raid("raid0_meta", "rzerometa", 4, 2, 2, "stripe_size = 32")
	l.raid("raid10", "rten", 4, 4, 2, "data_copies = 2\nregion_size = 64\nstripe_size = 32")
	l.raid("raid4", "rfour", 4, 3, 2, "region_size = 64\nstripe_size = 32")
	l.raid("raid5_ls", "rfive", 4, 3, 2, "region_size = 64\nstripe_size = 32")
	l.raid("raid6_zr", "rsix", 6, 5, 2, "region_size = 64\nstripe_size = 32")
	l.linear("origin", shown, 0, 4)
	l.linear("snap", hidden, 1, 2)
	l.b.WriteString(volumeText("snapshot0", shown, "start_extent = 0\nextent_count = 4\ntype = \"snapshot\"\nchunk_size = 8\norigin = \"origin\"\ncow_store = \"snap\""))
	l.linear("merged", shown, 0, 4)
	l.linear("goes", hidden, 1, 2)
	l.b.WriteString(volumeText("snapshot1", hidden, "start_extent = 0\nextent_count = 4\ntype = \"snapshot\"\nchunk_size = 8\norigin = \"merged\"\nmerging_store = \"goes\""))
	l.b.WriteString(volumeText("virtual_vorigin", hidden, "start_extent = 0\nextent_count = 9\ntype = \"zero\""))
	l.linear("virtual", hidden, 1, 2)
	l.b.WriteString(volumeText("snapshot2", shown, "start_extent = 0\nextent_count = 9\ntype = \"snapshot\"\nchunk_size = 8\norigin = \"virtual_vorigin\"\ncow_store = \"virtual\""))
	l.b.WriteString(volumeText("zeros", shown, "start_extent = 0\nextent_count = 9\ntype = \"zero\""))
	l.b.WriteString(volumeText("errors", shown, "start_extent = 0\nextent_count = 9\ntype = \"error\""))
	l.linear("lvol0_pmspare", hidden, 0, 1)
	l.cache("cached", "writethrough")
	l.cache("ucached", "writeback")
	return textOf("vg0", 40, 2, l.b.String())
}

func (l *layout) cache(name, mode string) {
	l.linear(name+"_corig", hidden, 0, 2)
	l.linear(name+"fast_cpool_cdata", hidden, 1, 2)
	l.linear(name+"fast_cpool_cmeta", hidden, 1, 1)
	l.b.WriteString(volumeText(name+"fast_cpool", hidden, fmt.Sprintf("start_extent = 0\nextent_count = 2\ntype = \"cache-pool+METADATA_FORMAT\"\ndata = \"%[1]sfast_cpool_cdata\"\nmetadata = \"%[1]sfast_cpool_cmeta\"\nmetadata_format = 2\nchunk_size = 128\ncache_mode = \"%[2]s\"\npolicy = \"smq\"", name, mode)))
	l.b.WriteString(volumeText(name, shown, fmt.Sprintf("start_extent = 0\nextent_count = 2\ntype = \"cache\"\ncache_pool = \"%[1]sfast_cpool\"\norigin = \"%[1]s_corig\"", name)))
}
