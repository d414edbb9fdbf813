package ext4

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
	"golang.org/x/text/unicode/rangetable"
)

// encodingUTF8 is the one encoding of names in case-folded directories: UTF-8 of Unicode
// 12.1.
const encodingUTF8 = 1

// foldAssigned are the characters that are folded. 12.1 added one to 12.0, which has
// neither case nor a canonical decomposition.
var foldAssigned = rangetable.Assigned("12.0.0")

// foldCase is the full case folding of Unicode; it is safe for concurrent use.
var foldCase = cases.Fold()

// foldIgnored tells whether a character counts for nothing: Default_Ignorable_Code_Point
// of Unicode's DerivedCoreProperties.
func foldIgnored(r rune) bool {
	switch {
	case !unicode.Is(foldAssigned, r): // but set aside for such
		return r == 0x2065 || r >= 0xfff0 && r <= 0xfff8 || r >= 0xe0000 && r <= 0xe0fff
	case unicode.Is(unicode.Other_Default_Ignorable_Code_Point, r), unicode.Is(unicode.Variation_Selector, r):
		return true
	case !unicode.Is(unicode.Cf, r), unicode.Is(unicode.Prepended_Concatenation_Mark, r):
		return false
	}
	// Interlinear annotations and the format controls of hieroglyphs.
	return !(r >= 0xfff9 && r <= 0xfffb || r >= 0x13430 && r <= 0x13438)
}

// foldName is what the names have in common that a case-folded directory takes for the
// same: the full case folding, canonically decomposed, without characters that are ignored. ok is false for
// what is not UTF-8, and equals only itself.
func foldName(name string) (folded string, ok bool) {
	ascii := true
	for i := range len(name) {
		ascii = ascii && name[i] < utf8.RuneSelf
	}
	if ascii {
		return strings.ToLower(name), true
	}
	if !utf8.ValidString(name) {
		return "", false
	}
	var out, part strings.Builder
	// Marks are put in order between characters that are not, and never past one that is ignored or unknown.
	flush := func() {
		out.WriteString(norm.NFD.String(part.String()))
		part.Reset()
	}
	for _, r := range name {
		switch {
		case foldIgnored(r):
			flush()
		case r >= 0x13a0 && r <= 0x13f5: // Cherokee folds to these, which the library takes for having lower-case ones
			part.WriteRune(r)
		case !unicode.Is(foldAssigned, r):
			flush()
			out.WriteRune(r)
		default:
			// Each on its own first: folding makes a letter of one mark, U+0345.
			part.WriteString(norm.NFD.String(foldCase.String(norm.NFD.String(string(r)))))
		}
	}
	flush()
	return out.String(), true
}
