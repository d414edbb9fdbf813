package xlcfg

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/host/*.cfg")
	if err != nil || len(files) == 0 {
		f.Fatalf("no samples: %v", err)
	}
	for _, file := range files {
		src, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(src)
	}
	for _, c := range syntaxCases {
		f.Add([]byte(c.text))
	}
	for _, c := range diskCases {
		f.Add([]byte("name='d'\n" + diskConfig([]string{c.spec})))
	}
	const path = "/srv/xen/case.cfg"
	f.Fuzz(func(t *testing.T, src []byte) {
		d := domainOf(path, src)
		if d.Name == "" {
			t.Error("a domain without a name")
		}
		if d.Err != nil && !strings.HasPrefix(d.Err.Error(), path+":") {
			t.Errorf("error without file and line: %v", d.Err)
		}
		if len(d.Warnings) > maxWarnings || len(d.Disks) > maxDisks {
			t.Errorf("%d warnings, %d disks", len(d.Warnings), len(d.Disks))
		}
		lines := bytes.Count(src, []byte("\n")) + 1
		for _, w := range append(d.Warnings, errText(d.Err)) {
			if strings.Contains(w, "\n") {
				t.Errorf("%q is more than one line", w)
			}
			if n := lineOf(w, path); n > lines {
				t.Errorf("%q: the file has %d lines", w, lines)
			}
		}
		seen := map[string]bool{}
		for _, k := range d.Disks {
			if !vdevSyntax.MatchString(k.VDev) || seen[k.VDev] {
				t.Errorf("vdev %q is illegal or there twice", k.VDev)
			}
			seen[k.VDev] = true
			if k.Source == "" && !k.CDROM {
				t.Errorf("disk %s has no source", k.VDev)
			}
			if k.Source != "" && k.Script == "" && k.BackendDomain == "" && !filepath.IsAbs(k.Source) && !hasProtocol(k.Source) {
				t.Errorf("source %q is no absolute path", k.Source)
			}
		}
	})
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func lineOf(sentence, path string) int {
	n := 0
	for _, c := range strings.TrimPrefix(sentence, path+":") {
		if c < '0' || c > '9' {
			return n
		}
		n = n*10 + int(c-'0')
	}
	return 0
}
