package xlcfg

import (
	"fmt"
	"strings"
)

// token is a lexical element of a configuration file.
type token struct {
	kind tokenKind
	text []byte // of a name, number or string, without quotes and escapes
	line int    // where it begins, from 1
}

type tokenKind string

const (
	tokEnd     tokenKind = "the end of the file"
	tokNewline tokenKind = "the end of the line"
	tokName    tokenKind = "a name"
	tokNumber  tokenKind = "a number"
	tokString  tokenKind = "a string"
	tokComma   tokenKind = "','"
	tokOpen    tokenKind = "'['"
	tokClose   tokenKind = "']'"
	tokAssign  tokenKind = "'='"
	tokAdd     tokenKind = "'+='"
	tokSemi    tokenKind = "';'"
)

// fault is something wrong at a line of a file.
type fault struct {
	line int
	text string
}

func (f *fault) Error() string { return f.text }

func faultf(line int, format string, args ...any) *fault {
	return &fault{line: line, text: fmt.Sprintf(format, args...)}
}

// lexer cuts a configuration file into tokens.
type lexer struct {
	src  []byte
	pos  int
	line int
	// warn takes what is odd and yet accepted.
	warn func(*fault)
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }
func isLower(c byte) bool { return c >= 'a' && c <= 'z' }

var punctuation = map[byte]tokenKind{',': tokComma, '[': tokOpen, ']': tokClose, '=': tokAssign, ';': tokSemi}

// next returns the next token.
func (l *lexer) next() (token, *fault) {
	l.skipBlanks()
	if l.pos >= len(l.src) {
		return token{kind: tokEnd, line: l.line}, nil
	}
	t := token{line: l.line}
	c := l.src[l.pos]
	switch {
	case c == '\n':
		t.kind = tokNewline
		l.pos++
		l.line++
		return t, nil
	case isLower(c):
		t.kind = tokName
		t.text = l.take(func(c byte) bool { return isLower(c) || isDigit(c) || c == '_' })
		return t, nil
	case isDigit(c):
		t.kind = tokNumber
		t.text = l.take(func(c byte) bool { return isDigit(c) || c >= 'a' && c <= 'f' || c == 'x' })
		return t, nil
	case c == '\'' || c == '"':
		text, err := l.quoted(c)
		if err != nil {
			return t, err
		}
		t.kind, t.text = tokString, text
		return t, nil
	case c == '+' && l.pos+1 < len(l.src) && l.src[l.pos+1] == '=':
		t.kind = tokAdd
		l.pos += 2
		return t, nil
	}
	if kind, ok := punctuation[c]; ok {
		t.kind = kind
		l.pos++
		return t, nil
	}
	if strings.IndexByte("+-.():", c) >= 0 {
		return t, faultf(t.line, "%q is not of this syntax: xl evaluates no expressions, write the value itself", c)
	}
	if c >= 'A' && c <= 'Z' {
		return t, faultf(t.line, "names are in lower case, and strings in quotes: found %q", c)
	}
	return t, faultf(t.line, "unexpected byte %q", c)
}

// skipBlanks skips blanks and comments, up to the newline.
func (l *lexer) skipBlanks() {
	for l.pos < len(l.src) {
		switch c := l.src[l.pos]; {
		case c == ' ' || c == '\t':
			l.pos++
		case c == '\r' && (l.pos+1 == len(l.src) || l.src[l.pos+1] == '\n'):
			l.pos++
		case c == '#':
			for l.pos < len(l.src) && l.src[l.pos] != '\n' {
				l.pos++
			}
		default:
			return
		}
	}
}

// skipLine goes to the beginning of the next line, to go on after an error.
func (l *lexer) skipLine() {
	for l.pos < len(l.src) {
		l.pos++
		if l.src[l.pos-1] == '\n' {
			l.line++
			return
		}
	}
}

func (l *lexer) take(ok func(byte) bool) []byte {
	start := l.pos
	for l.pos < len(l.src) && ok(l.src[l.pos]) {
		l.pos++
	}
	return l.src[start:l.pos:l.pos]
}

// escapes are the characters after a backslash that xl knows.
var escapes = map[byte]byte{'"': '"', '\'': '\'', '\\': '\\',
	'a': '\a', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t', 'v': '\v'}

// quoted reads a string that begins at pos with quote. It ends on its line.
func (l *lexer) quoted(quote byte) ([]byte, *fault) {
	var out []byte
	for p := l.pos + 1; p < len(l.src); {
		c := l.src[p]
		p++
		switch c {
		case quote:
			l.pos = p
			return out, nil
		case '\n':
			return nil, faultf(l.line, "the string is not closed on its line")
		case 0:
			return nil, faultf(l.line, "a string cannot hold a NUL byte")
		case '\\':
			if p == len(l.src) || l.src[p] == '\n' {
				return nil, faultf(l.line, "the string is not closed on its line")
			}
			e := l.src[p]
			p++
			if plain, ok := escapes[e]; ok {
				out = append(out, plain)
				continue
			}
			if e < '0' || e > '7' {
				return nil, faultf(l.line, "xl knows no escape of %q in a string", e)
			}
			// A numeric escape: xl reads up to three further digits, wants two, and drops
			// the character. The domain's name is what xl makes of it.
			digits := 0
			for digits < 3 && p < len(l.src) && isDigit(l.src[p]) {
				p++
				digits++
			}
			if digits < 2 {
				return nil, faultf(l.line, "xl reads no numeric escape with fewer than three digits")
			}
			l.warn(faultf(l.line, "xl drops the character of a numeric escape: write the character itself"))
		default:
			out = append(out, c)
		}
	}
	return nil, faultf(l.line, "the string is not closed on its line")
}
