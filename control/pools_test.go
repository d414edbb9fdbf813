package control

import (
	"testing"

	"domfs/backend"
	"domfs/backend/fake"
)

func TestPools_OfOneNameAreToldApartHoweverTheStoresAreOrdered(t *testing.T) {
	for _, reversed := range []bool{false, true} {
		image, lvm := fake.NewStore("image"), fake.NewStore("lvm")
		for _, s := range []*fake.Store{image, lvm} {
			s.AddPool(backend.Pool{Name: "srv", SizeBytes: 10, FreeBytes: 1})
		}
		lvm.AddPool(backend.Pool{Name: "srv:thin", SizeBytes: 10, MetadataSizeBytes: 4})
		b := newBench(t, setup{noStart: true, options: func(o *Options) {
			o.Stores = append(o.Stores, image.Driver(0), lvm.Driver(0))
			if reversed {
				o.Stores[1], o.Stores[2] = o.Stores[2], o.Stores[1]
			}
		}})
		var got []string
		for _, p := range b.inv().Pools {
			got = append(got, p.Name+" "+p.Store+"/"+p.Key)
		}
		wantEqual(t, "pools", got, []string{"fakestore fakestore/fakestore", "image image/image", "lvm lvm/lvm",
			"srv image/srv", "srv:thin lvm/srv:thin", "srv@lvm lvm/srv"})
	}
}
