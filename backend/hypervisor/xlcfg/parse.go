package xlcfg

// Limits of a configuration file.
const (
	maxFileBytes = 1 << 20
	maxDepth     = 16    // of lists in lists
	maxValues    = 16384 // strings, numbers and lists in a file
)

// value is a string (a number is one, too) or a list.
type value struct {
	line   int
	isList bool
	text   []byte
	list   []value
}

// settings are a file's assignments, by name; the last one of a name counts.
type settings map[string]value

// parser reads the assignments of a file.
type parser struct {
	lexer
	tok    token
	values int
}

// parse reads a configuration file. After an error it goes on at the next line, as xl
// does, so that the settings hold what could be read; the error is the first one.
func parse(src []byte, warn func(*fault)) (settings, *fault) {
	p := &parser{lexer: lexer{src: src, line: 1, warn: warn}}
	set := settings{}
	var first *fault
	for {
		more, err := p.statement(set)
		if err != nil {
			if first == nil {
				first = err
			}
			if p.values > maxValues {
				return set, first
			}
			// An error at the end of a line has that line behind it already.
			if p.tok.kind != tokNewline {
				p.skipLine()
			}
			continue
		}
		if !more {
			return set, first
		}
	}
}

func (p *parser) advance() *fault {
	t, err := p.next()
	if err != nil {
		p.tok = token{line: p.line}
		return err
	}
	p.tok = t
	return nil
}

// unexpected is the error for the present token.
func (p *parser) unexpected(want string) *fault {
	if p.tok.kind == tokName {
		return faultf(p.tok.line, "expected %s, found the name %s: xl evaluates no expressions", want, p.tok.text)
	}
	return faultf(p.tok.line, "expected %s, found %s", want, p.tok.kind)
}

// statement reads one assignment, or none, with what ends it. more is false at the
// end of the file.
func (p *parser) statement(set settings) (more bool, err *fault) {
	if err := p.advance(); err != nil {
		return false, err
	}
	switch p.tok.kind {
	case tokEnd:
		return false, nil
	case tokNewline, tokSemi:
		return true, nil
	case tokName:
	default:
		return false, p.unexpected("a name")
	}
	name := string(p.tok.text)
	if err := p.advance(); err != nil {
		return false, err
	}
	op := p.tok
	if op.kind != tokAssign && op.kind != tokAdd {
		return false, p.unexpected("'=' after " + name)
	}
	if err := p.advance(); err != nil {
		return false, err
	}
	v, err := p.value(0)
	if err != nil {
		return false, err
	}
	switch p.tok.kind {
	case tokNewline, tokSemi, tokEnd:
	default:
		return false, p.unexpected("the end of the line after the value of " + name)
	}
	if old, ok := set[name]; ok && op.kind == tokAdd {
		if old.isList != v.isList {
			return false, faultf(op.line, "a list cannot be added to a string for %s, nor a string to a list", name)
		}
		v = value{line: v.line, isList: v.isList, text: append(old.text, v.text...), list: append(old.list, v.list...)}
	}
	set[name] = v
	return p.tok.kind != tokEnd, nil
}

// value reads a value that begins at the present token, and the token after it.
func (p *parser) value(depth int) (value, *fault) {
	if p.values++; p.values > maxValues {
		return value{}, faultf(p.tok.line, "the file has more than %d values", maxValues)
	}
	v := value{line: p.tok.line}
	switch p.tok.kind {
	case tokString, tokNumber:
		v.text = p.tok.text
		return v, p.advance()
	case tokOpen:
		if depth == maxDepth {
			return v, faultf(p.tok.line, "lists are nested more than %d deep", maxDepth)
		}
		v.isList = true
		return v, p.items(&v, depth+1)
	}
	return v, p.unexpected("a string, a number or a list")
}

// items reads the values of a list, whose bracket is the present token, and the
// token after it.
func (p *parser) items(v *value, depth int) *fault {
	open := p.tok.line
	if err := p.skipNewlines(); err != nil {
		return err
	}
	for p.tok.kind != tokClose {
		if p.tok.kind == tokEnd {
			return faultf(open, "the list is not closed")
		}
		item, err := p.value(depth)
		if err != nil {
			return err
		}
		v.list = append(v.list, item)
		if p.tok.kind == tokNewline {
			if err := p.skipNewlines(); err != nil {
				return err
			}
		}
		switch p.tok.kind {
		case tokClose:
		case tokComma:
			if err := p.skipNewlines(); err != nil {
				return err
			}
		case tokEnd:
			return faultf(open, "the list is not closed")
		default:
			return p.unexpected("',' or ']' in a list")
		}
	}
	return p.advance()
}

// skipNewlines goes to the next token that is not a newline.
func (p *parser) skipNewlines() *fault {
	for {
		if err := p.advance(); err != nil || p.tok.kind != tokNewline {
			return err
		}
	}
}
