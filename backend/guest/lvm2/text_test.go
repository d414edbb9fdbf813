package lvm2

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"domfs/backend"
)

// written is a section as one line.
func (n *node) written() string {
	var parts []string
	for _, c := range n.children {
		switch {
		case c.section:
			parts = append(parts, c.key+"{"+c.written()+"}")
		default:
			var values []string
			for _, v := range c.values {
				if v.isNumber {
					values = append(values, fmt.Sprint(v.number))
				} else {
					values = append(values, fmt.Sprintf("%q", v.text))
				}
			}
			text := strings.Join(values, ",")
			if c.list {
				text = "[" + text + "]"
			}
			parts = append(parts, c.key+"="+text)
		}
	}
	return strings.Join(parts, " ")
}

func TestParseText_ReadsWhatLVMDoes(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", ""},
		{"# nothing but this", ""},
		{"a=1", `a=1`},
		{"a = -5 b=+7", `a=-5 b=7`},
		{"a = \"x # y\" # z\nb = 'it\\s'", "a=\"x # y\" b=\"it\\\\s\""},
		{`a = "quo\"ted\\"`, `a="quo\"ted\\"`},
		{"a { b { c = 1 } d = 2 }", `a{b{c=1} d=2}`},
		{"a = [] b = [1] c=[\"x\",2,\n# between\n3,]", `a=[] b=[1] c=["x",2,3]`},
		{"a = bare/word b=1.5", `a="bare/word" b="1.5"`},
		{"\"key\" = 1 'other' { }", `key=1 other{}`},
		{"lvol0-x.y+z_1{a=1}", `lvol0-x.y+z_1{a=1}`},
		{"12{a=1}", `12{a=1}`},
		{"a = 99999999999999999999", `a="99999999999999999999"`},
		{"a = 1\x00 } } not read", `a=1`},
		{"\v\f\r\ta\t=\r\n1", `a=1`},
	} {
		root, err := parseText(c.text, maxTextDepth)
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
		} else if got := root.written(); got != c.want {
			t.Errorf("%q: %s, want %s", c.text, got, c.want)
		}
	}
}

func TestParseText_RefusesAndSaysWhere(t *testing.T) {
	for _, c := range []struct{ text, says string }{
		{"a", "line 1"},
		{"a = ", "line 1"},
		{"a = 1\n\n= 2", "line 3"},
		{"a {\nb = 1", "does not end"},
		{"a }", "line 1"},
		{"}", "line 1"},
		{"a = \"x\n\n", "line 1"},
		{"a = [1 2]", "line 1"},
		{"a = [1", "line 1"},
		{"a = [[1]]", "line 1"},
		{"a = {", "line 1"},
		{"\"\" = 1", "a key"},
		{"a = 1 a = 2", "twice"},
		{"s { a = 1 a { } }", "twice"},
		{strings.Repeat("a{", 1000), "nested"},
		{strings.Repeat("a{", maxTextDepth+1) + strings.Repeat("}", maxTextDepth+1), "nested"},
	} {
		_, err := parseText(c.text, maxTextDepth)
		if !errors.Is(err, backend.ErrCorrupt) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%.40q: %v", c.text, err)
		}
	}
}

func TestParseText_KeepsABoundedNumberOfValues(t *testing.T) {
	for _, text := range []string{
		"a = [" + strings.Repeat("1,", maxNodes+1) + "]",
		"s {" + strings.Repeat("x", 100) + "}",
	} {
		_, err := parseText(text, maxTextDepth)
		if err == nil {
			t.Errorf("%.40q was read", text)
		}
	}
	var b strings.Builder
	b.WriteString("s {\n")
	for i := range maxNodes {
		fmt.Fprintf(&b, "k%d=1\n", i)
	}
	b.WriteString("}\nc = 2")
	if _, err := parseText(b.String(), maxTextDepth); !errors.Is(err, backend.ErrUnsupported) {
		t.Errorf("%d keys: %v", maxNodes, err)
	}
	// The head of it is read nevertheless.
	root, err := parseText(b.String(), 0)
	if err != nil || root.written() != "s{} c=2" {
		t.Errorf("%.40s: %v", root.written(), err)
	}
}

func TestUUID_HasOneForm(t *testing.T) {
	const plain, with = "0123456789abcdefghijklmnopqrST!#", "012345-6789-abcd-efgh-ijkl-mnop-qrST!#"
	if hyphenated(plain) != with {
		t.Error(hyphenated(plain))
	}
	if u, ok := unhyphenated(with); !ok || u != plain {
		t.Error(u, ok)
	}
	for _, s := range []string{"", plain, with + "-", strings.Replace(with, "a", "/", 1), strings.Replace(with, "5-6", "-56", 1), strings.Replace(with, "a", "\n", 1)} {
		if _, ok := unhyphenated(s); ok {
			t.Errorf("%q is a UUID", s)
		}
	}
}
