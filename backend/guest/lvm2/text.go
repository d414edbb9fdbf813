package lvm2

import (
	"fmt"
	"strconv"
	"strings"

	"domfs/backend"
)

// LVM's text format, as its libdm/libdm-config.c reads it: KEY = VALUE and KEY { … } with comments from # to
// the end of the line; a value is a whole number, a string in double or single quotes, a bare word or a
// list of those in brackets.

// node is a key of the text: a section with children, or one with values.
type node struct {
	key      string
	section  bool
	list     bool // the values were in brackets
	values   []value
	children []*node
	byKey    map[string]*node // of many children
}

// value is a number or a string.
type value struct {
	isNumber bool
	number   int64
	text     string
}

// child is the child of a section with that key, nil if there is none.
func (n *node) child(key string) *node {
	if n.byKey != nil {
		return n.byKey[key]
	}
	for _, c := range n.children {
		if c.key == key {
			return c
		}
	}
	return nil
}

// has tells whether there is such a key.
func (n *node) has(key string) bool { return n.child(key) != nil }

// number is the value of key, which must be within 0 and limit.
func (n *node) number(key string, limit int64) (int64, error) {
	c := n.child(key)
	if c == nil {
		return 0, fmt.Errorf("%s has no %s: %w", quoted(n.key), key, backend.ErrCorrupt)
	}
	if c.section || len(c.values) != 1 || !c.values[0].isNumber {
		return 0, fmt.Errorf("%s of %s is not a number: %w", key, quoted(n.key), backend.ErrCorrupt)
	}
	v := c.values[0].number
	if v < 0 || v > limit {
		return 0, fmt.Errorf("%s of %s is %d, out of range: %w", key, quoted(n.key), v, backend.ErrCorrupt)
	}
	return v, nil
}

// numberOr is number, or otherwise where there is no such key.
func (n *node) numberOr(key string, limit, otherwise int64) (int64, error) {
	if !n.has(key) {
		return otherwise, nil
	}
	return n.number(key, limit)
}

// str is the value of key, a string.
func (n *node) str(key string) (string, error) {
	c := n.child(key)
	if c == nil {
		return "", fmt.Errorf("%s has no %s: %w", quoted(n.key), key, backend.ErrCorrupt)
	}
	if c.section || c.list || len(c.values) != 1 || c.values[0].isNumber {
		return "", fmt.Errorf("%s of %s is not a string: %w", key, quoted(n.key), backend.ErrCorrupt)
	}
	return c.values[0].text, nil
}

// strOr is str, or otherwise where there is no such key.
func (n *node) strOr(key, otherwise string) (string, error) {
	if !n.has(key) {
		return otherwise, nil
	}
	return n.str(key)
}

// flags are the strings of a list, none where there is no such key.
func (n *node) flags(key string) (map[string]bool, error) {
	c := n.child(key)
	if c == nil {
		return nil, nil
	}
	set := make(map[string]bool, len(c.values))
	for _, v := range c.values {
		if v.isNumber {
			return nil, fmt.Errorf("%s of %s is not a list of strings: %w", key, quoted(n.key), backend.ErrCorrupt)
		}
		set[v.text] = true
	}
	return set, nil
}

// uuid is the value of key, without hyphens.
func (n *node) uuid(key string) (string, error) {
	s, err := n.str(key)
	if err != nil {
		return "", err
	}
	u, ok := unhyphenated(s)
	if !ok {
		return "", fmt.Errorf("%s of %s is %s, not a UUID: %w", key, quoted(n.key), quoted(s), backend.ErrCorrupt)
	}
	return u, nil
}

// parseText reads a whole text. Sections at depth keep and below are checked for their form but not kept:
// 0 keeps nothing, maxTextDepth all.
func parseText(text string, keep int) (*node, error) {
	// LVM writes the text with the NUL at its end.
	if end := strings.IndexByte(text, 0); end >= 0 {
		text = text[:end]
	}
	p := parser{text: text, line: 1, keep: keep}
	if err := p.next(false); err != nil {
		return nil, err
	}
	root := &node{section: true}
	for p.kind != tokenEnd {
		if err := p.entry(root, 0); err != nil {
			return nil, err
		}
	}
	return root, noDuplicates(root)
}

type token int

const (
	tokenEnd    token = iota
	tokenPunct        // one of { } [ ] , =
	tokenString       // quoted
	tokenWord         // a key, or a value that is bare
	tokenNumber       // a value
)

type parser struct {
	text  string
	pos   int
	line  int
	keep  int
	nodes int

	kind   token
	punct  byte
	str    string
	number int64
}

func (p *parser) fault(format string, args ...any) error {
	return fmt.Errorf("metadata text, line %d: %s: %w", p.line, fmt.Sprintf(format, args...), backend.ErrCorrupt)
}

func isSpace(c byte) bool {
	return c == ' ' || c >= '\t' && c <= '\r'
}

// next reads a token; where values may stand, digits are numbers.
func (p *parser) next(values bool) error {
	for p.pos < len(p.text) {
		c := p.text[p.pos]
		switch {
		case c == '\n':
			p.line++
			p.pos++
			continue
		case isSpace(c):
			p.pos++
			continue
		case c == '#':
			for p.pos < len(p.text) && p.text[p.pos] != '\n' {
				p.pos++
			}
			continue
		}
		break
	}
	if p.pos == len(p.text) {
		p.kind = tokenEnd
		return nil
	}
	start := p.pos
	switch c := p.text[p.pos]; c {
	case '{', '}', '[', ']', ',', '=':
		p.kind, p.punct = tokenPunct, c
		p.pos++
		return nil
	case '"', '\'':
		return p.quotedString(c)
	}
	for p.pos < len(p.text) {
		c := p.text[p.pos]
		if isSpace(c) || strings.IndexByte("#={}", c) >= 0 || values && strings.IndexByte("[],", c) >= 0 {
			break
		}
		p.pos++
	}
	p.str = p.text[start:p.pos]
	p.kind = tokenWord
	if c := p.str[0]; values && (c >= '0' && c <= '9' || c == '+' || c == '-') {
		n, err := strconv.ParseInt(p.str, 10, 64)
		if err != nil {
			// A fraction or a number over 64 bits: LVM writes neither where we look.
			return nil
		}
		p.kind, p.number = tokenNumber, n
	}
	return nil
}

func (p *parser) quotedString(quote byte) error {
	line := p.line
	p.pos++
	start, escaped := p.pos, false
	for p.pos < len(p.text) && p.text[p.pos] != quote {
		if p.text[p.pos] == '\n' {
			p.line++
		}
		if quote == '"' && p.text[p.pos] == '\\' && p.pos+1 < len(p.text) {
			escaped = true
			p.pos++
		}
		p.pos++
	}
	if p.pos >= len(p.text) {
		p.line = line
		return p.fault("a string does not end")
	}
	p.kind, p.str = tokenString, p.text[start:p.pos]
	p.pos++
	if escaped {
		var b strings.Builder
		for i := 0; i < len(p.str); i++ {
			if p.str[i] == '\\' && i+1 < len(p.str) {
				i++
			}
			b.WriteByte(p.str[i])
		}
		p.str = b.String()
	}
	return nil
}

// is tells whether the token is this sign.
func (p *parser) is(punct byte) bool { return p.kind == tokenPunct && p.punct == punct }

// count bounds what is kept.
func (p *parser) count() error {
	if p.nodes++; p.nodes > maxNodes {
		return fmt.Errorf("metadata text with more than %d keys and values: %w", maxNodes, backend.ErrUnsupported)
	}
	return nil
}

// entry reads KEY = VALUE or KEY { … } into parent, which is nil where it is not kept.
func (p *parser) entry(parent *node, depth int) error {
	if p.kind != tokenWord && p.kind != tokenString || p.str == "" {
		return p.fault("a key was expected")
	}
	var n *node
	if parent != nil && depth <= p.keep {
		if err := p.count(); err != nil {
			return err
		}
		n = &node{key: p.str}
		parent.children = append(parent.children, n)
	}
	if err := p.next(false); err != nil {
		return err
	}
	switch {
	case p.is('='):
		return p.value(n)
	case !p.is('{'):
		return p.fault("= or { was expected")
	}
	if depth == maxTextDepth {
		return p.fault("sections are nested more than %d deep", maxTextDepth)
	}
	if err := p.next(false); err != nil {
		return err
	}
	for !p.is('}') {
		if p.kind == tokenEnd {
			return p.fault("a section does not end")
		}
		if err := p.entry(n, depth+1); err != nil {
			return err
		}
	}
	if n != nil {
		n.section = true
		if err := noDuplicates(n); err != nil {
			return err
		}
	}
	return p.next(false)
}

// value reads what follows =.
func (p *parser) value(n *node) error {
	if err := p.next(true); err != nil {
		return err
	}
	if !p.is('[') {
		if err := p.scalar(n); err != nil {
			return err
		}
		return p.next(false)
	}
	if n != nil {
		n.list = true
	}
	if err := p.next(true); err != nil {
		return err
	}
	for !p.is(']') {
		if err := p.scalar(n); err != nil {
			return err
		}
		if err := p.next(true); err != nil {
			return err
		}
		if p.is(']') {
			break
		}
		if !p.is(',') {
			return p.fault(", or ] was expected")
		}
		if err := p.next(true); err != nil {
			return err
		}
	}
	return p.next(false)
}

func (p *parser) scalar(n *node) error {
	if p.kind != tokenNumber && p.kind != tokenString && p.kind != tokenWord {
		return p.fault("a value was expected")
	}
	if n == nil {
		return nil
	}
	if err := p.count(); err != nil {
		return err
	}
	n.values = append(n.values, value{isNumber: p.kind == tokenNumber, number: p.number, text: p.str})
	return nil
}

// fewChildren are searched as fast in their order as in a map.
const fewChildren = 32

// noDuplicates refuses a section that has a key twice: which one counts is nobody's guess.
func noDuplicates(n *node) error {
	if len(n.children) < 2 {
		return nil
	}
	seen := make(map[string]*node, len(n.children))
	for _, c := range n.children {
		if seen[c.key] != nil {
			return fmt.Errorf("metadata text: %s is in %s twice: %w", quoted(c.key), quoted(n.key), backend.ErrCorrupt)
		}
		seen[c.key] = c
	}
	if len(seen) > fewChildren {
		n.byKey = seen
	}
	return nil
}
