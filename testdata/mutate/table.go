package main

import (
	"hash/crc32"

	"domfs/backend"
)

// gpt makes the checksums of a GPT and of its copy fit (UEFI specification, 5.3).
type gpt struct{ sector int64 }

// tableSums are those of a partition table; none where it has none.
func tableSums(d backend.Device) sums {
	const sector = 512
	if b, err := get(d, sector, 8); err == nil && string(b) == "EFI PART" {
		return gpt{sector}
	}
	return nil
}

func (g gpt) fix(c *changed, _ *seed) error {
	for _, at := range []int64{g.sector, c.size - g.sector} {
		h, err := c.get(at, int(g.sector))
		if err != nil {
			return err
		}
		first, count, size := int64(le.Uint64(h[72:])), int64(le.Uint32(h[80:])), int64(le.Uint32(h[84:]))
		if bytes := count * size; first >= 0 && first < c.size/g.sector && bytes > 0 && bytes <= 1<<20 {
			entries, err := c.get(first*g.sector, int(bytes))
			if err != nil {
				return err
			}
			le.PutUint32(h[88:], crc32.ChecksumIEEE(entries))
		}
		if n := le.Uint32(h[12:]); n >= 20 && int64(n) <= g.sector {
			le.PutUint32(h[16:], 0)
			le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:n]))
		}
		if err := c.put(at, h); err != nil {
			return err
		}
	}
	return nil
}
