package xlcfg

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"domfs/backend/backendtest/testneed"
)

// The oracle is libxlu, xl's own parser, asked by testdata/libxlu.c. What it said of the
// cases below is in testdata/libxlu.json, so that they are compared on any machine; where the library
// is installed, the record is compared with it, and -record renews it.

var record = flag.Bool("record", false, "record libxlu's answers in testdata/libxlu.json")

const recordFile = "testdata/libxlu.json"

type xluAnswer struct {
	Refused bool      `json:"refused"`
	Name    latin1    `json:"name,omitempty"`
	UUID    latin1    `json:"uuid,omitempty"`
	Disks   []xluDisk `json:"disks"`
}

type xluDisk struct {
	Spec        latin1 `json:"spec"`
	Refused     bool   `json:"refused,omitempty"`
	Target      latin1 `json:"target,omitempty"`
	VDev        latin1 `json:"vdev,omitempty"`
	Backend     latin1 `json:"backend,omitempty"`
	Script      latin1 `json:"script,omitempty"`
	Format      latin1 `json:"format,omitempty"`
	BackendType latin1 `json:"backendtype,omitempty"`
	RW          bool   `json:"rw,omitempty"`
	CDROM       bool   `json:"cdrom,omitempty"`
}

// latin1 is bytes, in JSON the code points of the same numbers.
type latin1 string

func (l latin1) MarshalJSON() ([]byte, error) {
	r := make([]rune, len(l))
	for i := range r {
		r[i] = rune(l[i])
	}
	return json.Marshal(string(r))
}

func (l *latin1) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	var out []byte
	for _, r := range s {
		out = append(out, byte(r))
	}
	*l = latin1(out)
	return nil
}

// syntaxCases are whole files. beyond says why one that xl refuses is accepted.
var syntaxCases = []struct{ text, beyond string }{
	{text: ""},
	{text: "\n\n;;\n"},
	{text: "name=\"a\""},
	{text: "name = 'a' # comment\n# another\nuuid='b'\n"},
	{text: "name=\"a\";uuid=\"b\";;\n"},
	{text: "name=\"a\" uuid=\"b\"\n"},
	{text: "\tname\t=\t'a'\t\n"},
	{text: "name = 12\n"},
	{text: "name=0x1f\n"},
	{text: "name=0x1F\n"},
	{text: "name=0755\n"},
	{text: "name=1fx\n"},
	{text: "name=1g\n"},
	{text: "name=-1\n"},
	{text: "name=1.5\n"},
	{text: "name=''\n"},
	{text: "name='a'\nname='b'\n"},
	{text: `name="it's"`},
	{text: `name='say "x"'`},
	{text: `name="a\"b\\c\'d"`},
	{text: `name="\a\b\f\n\r\t\v"`},
	{text: `name="a\x41b"`},
	{text: `name="a\101b"`},
	{text: `name="a\1012b"`},
	{text: `name="a\10128b"`},
	{text: `name="a\08b"`},
	{text: `name="a\0"`},
	{text: `name="a\8"`},
	{text: `name="a\qb"`},
	{text: `name="a\`},
	{text: "name=\"a\\\nb\"\n"},
	{text: "name=\"a\nb\"\n"},
	{text: "name=\"a'\n"},
	{text: "name=\"\xe9\xff\"\n"},
	{text: "name='#no comment;'\n"},
	{text: "name='''a'''\n"},
	{text: "name='a' 'b'\n"},
	{text: "name='a'+'b'\n"},
	{text: "name='a'\nname+='b'\n"},
	{text: "name+='b'\n"},
	{text: "name=1\nname+=2\n"},
	{text: "name='a'\nname += 'b'\nname='c'\nname+='d'\n"},
	{text: "name='a'\nname + = 'b'\n"},
	{text: "NAME='a'\n"},
	{text: "na-me='a'\n"},
	{text: "na_me2='a'\n"},
	{text: "_name='a'\n"},
	{text: "name='a'\nimport os\n"},
	{text: "name=os.name\n"},
	{text: "name=None\n"},
	{text: "name=true\n"},
	{text: "name=\n'a'\n"},
	{text: "name\n='a'\n"},
	{text: "name='a'\n= 'b'\n"},
	{text: "\xef\xbb\xbfname='a'\n"},
	{text: "name='a'\n\fuuid='b'\n"},
	{text: "def f():\n    return 1\nname='a'\n"},
	{text: "name=['a']\n"},
	{text: "disk=[]\n"},
	{text: "disk=[\n\n]\n"},
	{text: "disk=[,]\n"},
	{text: "disk=['/x,raw,xvda,w']\n"},
	{text: "disk=['/x,raw,xvda,w',]\n"},
	{text: "disk=['/x,raw,xvda,w',,]\n"},
	{text: "disk=['/x,raw,xvda,w' '/y,raw,xvdb,w']\n"},
	{text: "disk=[\n#c\n'/x,raw,xvda,w' # d\n,\n# e\n\n'/y,raw,xvdb,r'\n,\n]\nname='a'\n"},
	{text: "disk=['/x,raw,xvda,w'\n"},
	{text: "disk=['/x,raw,xvda,w';]\n"},
	{text: "disk=['/x,raw,xvda,w'] ['a']\n"},
	{text: "disk=['/x,raw,xvda,w']]\n"},
	{text: "disk=['/x,raw,xvda,w']\ndisk+=['/y,raw,xvdb,w']\ndisk+=[]\n"},
	{text: "disk=['/x,raw,xvda,w']\ndisk+='/y,raw,xvdb,w'\n"},
	{text: "disk='/x,raw,xvda,w'\n"},
	{text: "vif=[['a','b',['c']],[]]\nname='a'\n"},
	{text: "vif=[['a','b',['c'],[]]\nname='a'\n"},
	{text: "name='a'\r\ndisk=[\r\n'/x,raw,xvda,w',\r\n]\r\n", beyond: "lines that end in CR LF"},
	{text: "name='a'\n# no newline", beyond: "a comment at the end of the file"},
	{text: "name='a'\rb='c'\n"},
}

// diskCases are disk specifications. libxl says why one that libxlu lets pass is an
// error or left out here: what libxl refuses a step later.
var diskCases = []struct{ spec, libxl string }{
	// xl-disk-configuration(5), the two groups of equivalent ones and what it says in passing.
	{spec: "/dev/vg/guest-volume,,hda"},
	{spec: "/dev/vg/guest-volume,raw,hda,rw"},
	{spec: "format=raw, vdev=hda, access=rw, target=/dev/vg/guest-volume"},
	{spec: "raw:/dev/vg/guest-volume,hda,w"},
	{spec: "/srv/image.iso,,hdc,cdrom"},
	{spec: "/srv/image.iso,,hdc,,cdrom"},
	{spec: "/srv/image.iso,raw,hdc,devtype=cdrom"},
	{spec: "format=raw, vdev=hdc, access=ro, devtype=cdrom, target=/srv/image.iso"},
	{spec: "raw:/srv/image.iso,hdc:cdrom,ro"},
	{spec: ",hdc:cdrom,r"},
	{spec: "tap:aio:qcow:/srv/x.qcow,xvda,w"},
	{spec: "tap:aio:/some/path,xvda,w"},
	{spec: "tapdisk:/some/path,xvda,w"},
	{spec: "tap2:aio:/some/path,xvda,w"},
	{spec: "aio:/some/path,xvda,w"},
	{spec: "ioemu:/some/path,xvda,w"},
	{spec: "file:/some/path,ioemu:hda,w"},
	{spec: "phy:/dev/vg/lv,xvda,w"},
	{spec: "phy:vg/lv,xvda,w"},
	{spec: "qcow2:/some/path,xvda,w"},
	{spec: "tap:qcow2:/some/path,xvda,w"},
	{spec: "tap2:vhd:/some/path,xvda,r"},
	{spec: "vhd:/some/path,xvda"},
	{spec: "iscsi:iqn.2001-05.com.example:disk,xvda,w"},
	{spec: "nbd:host 9000,xvda,w"},
	{spec: "enbd:2000,xvda,w"},
	{spec: "drbd:web01,xvda,w"},
	{spec: "script=block-drbd,vdev=xvda,target=web01"},
	{spec: "script=/opt/block,vdev=xvda,target=a=b,c=d"},
	{spec: "format=qcow2,vdev=xvda,access=rw,target=/srv/a,b=c, d.img"},
	{spec: "vdev=xvda,target=/srv/a.img,"},
	{spec: "vdev=xvda,target=/srv/a.img,,"},
	{spec: ",,,,vdev=xvda,target=/srv/a.img", libxl: ""},
	{spec: "/srv/a.qed,qed,sda1"},
	{spec: "/srv/a.vhd,vhd,sda1,ro"},
	{spec: "/srv/a,qcow,d0p1,r"},
	{spec: "/srv/a,raw,51712,r"},
	{spec: "/srv/a,raw,0xca00,r"},
	{spec: "/srv/a,raw,vda,specification=virtio,backendtype=standalone"},
	{spec: "/srv/a,raw,xvda,w,backend=driverdomain"},
	{spec: "/srv/a,raw,xvda,w,backendtype=qdisk"},
	{spec: "/srv/a,raw,xvda,w,backendtype=phy"},
	{spec: "/srv/a,raw,xvda,w,backendtype=tap"},
	{spec: "/srv/a,raw,xvda,w,backendtype=vhost"},
	{spec: "/srv/a,raw,xvda,w,direct-io-safe,discard,trusted"},
	{spec: "/srv/a,raw,xvda,w,no-discard,untrusted,no-colo"},
	{spec: "/srv/a,raw,xvda,colo,colo-host=h,colo-port=9000,colo-export=e,active-disk=/a,hidden-disk=/h"},
	{spec: "/srv/a,raw,xvda,colo-port=x"},
	{spec: "  /srv/a, raw,\txvda, w"},
	{spec: "/srv/a ,raw,xvda,w"},
	{spec: "/srv/a,raw,xvda,w ,"},
	{spec: "/srv/a,raw,xvda,w "},
	{spec: "/srv/a,raw,xvda,"},
	{spec: "/srv/a,raw,xvda,,"},
	{spec: "/srv/a,raw,xvda,,,"},
	{spec: "/srv/a,raw,xvda,w,x"},
	{spec: "/srv/a,raw,xvda,access=r,w"},
	{spec: "/srv/a,raw,xvda,w,access=r"},
	{spec: "/srv/a,raw,xvda,w!"},
	{spec: "/srv/a,raw,xvda,R"},
	{spec: "/srv/a,format=qcow2,xvda,r"},
	{spec: "format=,/srv/a,xvda"},
	{spec: "/srv/a,vdev=xvda"},
	{spec: "vdev=xvda,/srv/a"},
	{spec: "vdev=xvda,/srv/a,raw,r"},
	{spec: "vdev=xvda,vdev=xvda,/srv/a"},
	{spec: "vdev=xvda,vdev=xvdb,/srv/a"},
	{spec: "/srv/a,raw,xvda,format=qcow2"},
	{spec: "/srv/a,raw,xvda,format=raw"},
	{spec: "/srv/a,raw,xvda,target=/srv/b"},
	{spec: "qcow2:/srv/a,xvda,w,format=raw"},
	{spec: "/srv/a,vmdk,xvda,w"},
	{spec: "vmdk:/srv/a,xvda,w"},
	{spec: "qed:/srv/a,xvda,w"},
	{spec: "http://x/y.iso,raw,hdc,r"},
	{spec: "target=http://x/y.iso"},
	{spec: "vdev=hdc,target=rbd:pool/image:id=x,y"},
	{spec: "a:b,raw,xvda"},
	{spec: "/srv/a:b,raw,xvda"},
	{spec: "/srv/a=b,raw,xvda"},
	{spec: "format =raw,vdev=xvda,target=/x"},
	{spec: "frobnicate=yes,/srv/a,raw,xvda"},
	{spec: "frobnicate=y,/srv/a,raw,xvda"},
	{spec: "frobnicate=,/srv/a,raw,xvda"},
	{spec: "/srv/a,raw,hdc:disk,w"},
	{spec: "/srv/a,raw,hdc:tape,w"},
	{spec: "/srv/a,raw,hdc,devtype=disk"},
	{spec: "/srv/a,raw,hdc,devtype=tape"},
	{spec: "/srv/a,raw,hdc,cdrom,devtype=disk"},
	{spec: "/srv/a,raw,hdc,cdrom,w"},
	{spec: ",,hdc,cdrom"},
	{spec: "vdev=hdc,cdrom"},
	{spec: "vdev=hdc,devtype=cdrom,format=raw,target="},
	{spec: "format=empty,vdev=hdc,cdrom"},
	{spec: "/srv/a,empty,hdc,cdrom"},
	{spec: ""},
	{spec: ","},
	{spec: "/srv/a"},
	{spec: "/srv/a,raw"},
	{spec: "/srv/a,raw,", libxl: "no vdev"},
	{spec: "/srv/a,raw,,w", libxl: "no vdev"},
	{spec: ",raw,xvda,w", libxl: "no target"},
	{spec: "vdev=xvda"},
	{spec: "/srv/a,empty,xvda,w", libxl: "no target"},
	{spec: "/srv/a,raw,../x,w", libxl: "vdev"},
	{spec: "/srv/a,raw,/dev/xvda,w", libxl: "vdev"},
	{spec: "/srv/a,raw,xvda ,w", libxl: "vdev"},
	{spec: "grant_usage=1,/srv/a,raw,xvda"},
	{spec: "script=,/srv/a,raw,xvda"},
	{spec: "backend=,/srv/a,raw,xvda"},
	{spec: "target=/srv/a"},
}

// newer are options that libxlu 4.17, which made the record, did not know yet.
var newer = []string{"grant_usage=", "trusted"}

// quoteXL is s as a string of a configuration file.
func quoteXL(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\n", `\n`, "\r", `\r`).Replace(s) + "'"
}

func diskConfig(specs []string) string {
	var b strings.Builder
	b.WriteString("disk = [\n")
	for _, s := range specs {
		b.WriteString(quoteXL(s) + ",\n")
	}
	b.WriteString("]\n")
	return b.String()
}

// oracle builds the program that asks libxlu.
func oracle(t *testing.T) func(text string) xluAnswer {
	testneed.Tools(t, "gcc")
	dir := t.TempDir()
	bin := filepath.Join(dir, "libxlu")
	out, err := exec.Command("gcc", "-o", bin, "testdata/libxlu.c", "-lxlutil", "-lxenlight", "-Wl,--allow-shlib-undefined").CombinedOutput()
	if err != nil {
		testneed.Missing(t, fmt.Sprintf("libxlu (package libxen-dev): %s", out))
	}
	return func(text string) xluAnswer {
		t.Helper()
		file := filepath.Join(dir, "case.cfg")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(bin, file).Output()
		if err != nil {
			t.Fatalf("libxlu on %q: %v", text, err)
		}
		var a xluAnswer
		if err := json.Unmarshal(out, &a); err != nil {
			t.Fatalf("libxlu on %q: %v in %s", text, err, out)
		}
		return a
	}
}

type xluRecord struct {
	Syntax []xluAnswer `json:"syntax"`
	Disks  []xluDisk   `json:"disks"`
}

func ask(t *testing.T, oracle func(string) xluAnswer) xluRecord {
	var r xluRecord
	for _, c := range syntaxCases {
		r.Syntax = append(r.Syntax, oracle(c.text))
	}
	var specs []string
	for _, c := range diskCases {
		specs = append(specs, c.spec)
	}
	r.Disks = oracle(diskConfig(specs)).Disks
	return r
}

func readRecord(t *testing.T) xluRecord {
	b, err := os.ReadFile(recordFile)
	if err != nil {
		t.Fatal(err)
	}
	var r xluRecord
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Syntax) != len(syntaxCases) || len(r.Disks) != len(diskCases) {
		t.Fatalf("%s is older than the cases: renew it with -record where libxen-dev is installed", recordFile)
	}
	return r
}

func TestRecord_IsWhatLibxluSays(t *testing.T) {
	now := ask(t, oracle(t))
	if *record {
		b, err := json.MarshalIndent(now, "", "\t")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(recordFile, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if then := readRecord(t); !reflect.DeepEqual(now, then) {
		for i := range now.Syntax {
			if !reflect.DeepEqual(now.Syntax[i], then.Syntax[i]) {
				t.Errorf("%q: libxlu says %+v, recorded was %+v", syntaxCases[i].text, now.Syntax[i], then.Syntax[i])
			}
		}
		for i := range now.Disks {
			if now.Disks[i] != then.Disks[i] {
				t.Errorf("libxlu says %+v, recorded was %+v", now.Disks[i], then.Disks[i])
			}
		}
	}
}

func TestParse_AgreesWithLibxlu(t *testing.T) {
	for i, want := range readRecord(t).Syntax {
		c := syntaxCases[i]
		set, err := parse([]byte(c.text), func(*fault) {})
		switch {
		case want.Refused && c.beyond != "":
			if err != nil {
				t.Errorf("%q: refused (line %d: %v), though it is to be accepted: %s", c.text, err.line, err, c.beyond)
			}
			continue
		case want.Refused:
			if err == nil {
				t.Errorf("%q: accepted, xl refuses it", c.text)
			} else if err.line < 1 || err.line > strings.Count(c.text, "\n")+1 {
				t.Errorf("%q: error in line %d: %v", c.text, err.line, err)
			}
			continue
		case err != nil:
			t.Errorf("%q: line %d: %v; xl accepts it", c.text, err.line, err)
			continue
		}
		if got := latin1(set["name"].text); got != want.Name {
			t.Errorf("%q: name %q, xl has %q", c.text, got, want.Name)
		}
		if got := latin1(set["uuid"].text); got != want.UUID {
			t.Errorf("%q: uuid %q, xl has %q", c.text, got, want.UUID)
		}
		if got, want := len(set["disk"].list), len(want.Disks); got != want {
			t.Errorf("%q: %d disks, xl has %d", c.text, got, want)
			continue
		}
		for j, d := range set["disk"].list {
			if latin1(d.text) != want.Disks[j].Spec {
				t.Errorf("%q: disk %q, xl has %q", c.text, d.text, want.Disks[j].Spec)
			}
		}
	}
}

func TestDisk_AgreesWithLibxlu(t *testing.T) {
	for i, want := range readRecord(t).Disks {
		if got := string(want.Spec); got != diskCases[i].spec {
			t.Fatalf("recorded %q, the case is %q: renew the record", got, diskCases[i].spec)
		}
		compareDisk(t, want, diskCases[i].libxl)
	}
}

// compareDisk compares a specification's reading with xl's. libxl: xl refuses the
// disk a step later than its parser.
func compareDisk(t *testing.T, want xluDisk, libxl string) {
	t.Helper()
	spec := string(want.Spec)
	var warnings []string
	s := &diskSpec{warn: func(format string, args ...any) { warnings = append(warnings, fmt.Sprintf(format, args...)) }}
	err := s.read(spec)
	if want.Refused {
		for _, option := range newer {
			if strings.Contains(spec, option) {
				return
			}
		}
		if err == nil && len(warnings) == 0 {
			if d, err := s.disk("/srv/xen"); err == nil && d.VDev != "" {
				t.Errorf("%q: read without a fault as %+v, xl refuses it", spec, d)
			}
		}
		return
	}
	if err != nil || len(warnings) > 0 {
		t.Errorf("%q: %v, %q; xl reads it without a fault", spec, err, warnings)
		return
	}
	d, err := s.disk("/srv/xen")
	if got := latin1(s.target.text); got != want.Target {
		t.Errorf("%q: target %q, xl has %q", spec, got, want.Target)
	}
	if latin1(d.VDev) != want.VDev || latin1(d.Script) != want.Script || latin1(s.backendDomain.text) != want.Backend || latin1(s.backendType.text) != want.BackendType {
		t.Errorf("%q: %+v, xl has %+v", spec, d, want)
	}
	if (d.Mode == "rw") != want.RW || d.CDROM != want.CDROM {
		t.Errorf("%q: mode %s, cdrom %v; xl has rw %v, cdrom %v", spec, d.Mode, d.CDROM, want.RW, want.CDROM)
	}
	if libxl != "" {
		if err == nil && d.VDev != "" {
			t.Errorf("%q: read as %+v, should be refused: %s", spec, d, libxl)
		}
		return
	}
	if err != nil {
		t.Errorf("%q: %v; xl reads it without a fault", spec, err)
		return
	}
	if latin1(d.Format) != want.Format {
		t.Errorf("%q: format %q, xl has %q", spec, d.Format, want.Format)
	}
	if (d.Source == "") != (want.Format == "") {
		t.Errorf("%q: source %q of format %q", spec, d.Source, want.Format)
	}
}

func TestDisk_AgreesWithLibxluOnRandomSpecifications(t *testing.T) {
	ask := oracle(t)
	words := []string{"/dev/vg/lv", "/srv/a.img", "", " ", "raw", "qcow2", "vhd", "xvda", "hdc", "hdc:cdrom", "sda1:disk", "r", "w", "ro", "rw",
		"cdrom", "devtype=cdrom", "devtype=disk", "format=qcow", "format=", "vdev=xvdb", "vdev=", "access=r", "access=", "access=rw",
		"backend=dd", "backendtype=phy", "backendtype=qdisk", "script=s", "direct-io-safe", "discard", "no-discard", "colo", "no-colo",
		"target=/x,y", "target=", "a=b", "bc=de", "x", "specification=virtio"}
	prefixes := []string{"", "", "", "", "", "phy:", "file:", "tap:", "tap2:", "aio:", "qcow2:", "drbd:", "raw:", "ioemu:", "tapdisk:", "x:", " "}
	rng := rand.New(rand.NewSource(1))
	var specs []string
	for range 5000 {
		var params []string
		for range 1 + rng.Intn(6) {
			params = append(params, prefixes[rng.Intn(len(prefixes))]+words[rng.Intn(len(words))])
		}
		if strings.HasSuffix(params[len(params)-1], "=") {
			params = append(params, "discard") // a lone = at the end of a specification escapes xl
		}
		specs = append(specs, strings.Join(params, ","))
	}
	refused := 0
	for _, want := range ask(diskConfig(specs)).Disks {
		libxl := ""
		switch {
		case want.Refused:
			refused++
		case !vdevSyntax.MatchString(string(want.VDev)):
			libxl = "vdev"
		case !want.CDROM && (want.Target == "" || want.Format == ""):
			libxl = "no target"
		}
		compareDisk(t, want, libxl)
	}
	if refused == 0 || refused == len(specs) {
		t.Errorf("%d of %d random specifications were refused: they compare nothing", refused, len(specs))
	}
}

func TestParse_AgreesWithLibxluOnRandomFiles(t *testing.T) {
	ask := oracle(t)
	words := []string{"name", "uuid", "=", "=", "+=", "'a'", "\"b\"", "12", "0x1f", "[", "]", ",", "\n", "\n", ";", "# c\n", " ", "x", "+", "'\\''"}
	valid := []string{"name='a'\n", "uuid = \"b\";", "name += 'c'\n", "x=[\n'a', 1,\n]\n", "vif=[['a'],[]];", "\n", "#'\n"}
	rng := rand.New(rand.NewSource(2))
	refused, accepted := 0, 0
	for range 300 {
		var b strings.Builder
		for range rng.Intn(8) {
			if rng.Intn(5) > 0 {
				b.WriteString(valid[rng.Intn(len(valid))])
			} else {
				b.WriteString(words[rng.Intn(len(words))])
			}
		}
		text := b.String() + "\n" // a lone + at the end of the file escapes xl
		want := ask(text)
		set, err := parse([]byte(text), func(*fault) {})
		if want.Refused != (err != nil) {
			t.Errorf("%q: error %v; refused by xl: %v", text, err, want.Refused)
		}
		if want.Refused {
			refused++
			continue
		}
		accepted++
		if name, uuid := latin1(set["name"].text), latin1(set["uuid"].text); name != want.Name || uuid != want.UUID {
			t.Errorf("%q: name %q, uuid %q; xl has %q, %q", text, name, uuid, want.Name, want.UUID)
		}
	}
	if refused < 20 || accepted < 20 {
		t.Errorf("%d refused, %d accepted: they compare little", refused, accepted)
	}
}
