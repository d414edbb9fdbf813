package ext4

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"domfs/backend"
	"domfs/backend/backendtest"
	"domfs/backend/backendtest/testneed"

	"golang.org/x/text/unicode/rangetable"
)

// foldedHashes is what debugfs says are the hashes of names in a case-folded directory.
func foldedHashes(t testing.TB, names []string) []uint32 {
	t.Helper()
	testneed.Tools(t, "debugfs")
	var in bytes.Buffer
	for _, name := range names {
		fmt.Fprintf(&in, "dx_hash -h half_md4 -e utf8 -c %s\n", name)
	}
	cmd := exec.Command("debugfs", "-f", "-")
	cmd.Stdin = &in
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var hashes []uint32
	for line := range strings.Lines(string(out)) {
		i := strings.LastIndex(line, " is 0x")
		if !strings.HasPrefix(line, "Hash of ") || i < 0 {
			continue
		}
		var hash uint32
		if _, err := fmt.Sscanf(line[i:], " is 0x%x", &hash); err != nil {
			t.Fatal(err)
		}
		hashes = append(hashes, hash)
	}
	if len(hashes) != len(names) {
		t.Fatalf("%d hashes of %d names: %.500q", len(hashes), len(names), out)
	}
	return hashes
}

func compareFolded(t testing.TB, names []string) {
	t.Helper()
	wrong := 0
	for i, want := range foldedHashes(t, names) {
		folded, ok := foldName(names[i])
		if !ok {
			folded = names[i]
		}
		if got, _ := nameHash(folded, hashHalfMD4, [4]uint32{}); got != want&^1 {
			if wrong++; wrong <= 20 {
				t.Errorf("%q (%+q), folded to %+q: 0x%08x, debugfs says 0x%08x", names[i], names[i], folded, got, want)
			}
		}
	}
	if wrong > 0 {
		t.Errorf("%d of %d names", wrong, len(names))
	}
}

// Of what has neither case nor marks, and of what is no character yet, one in 97 is compared.
func TestFoldName_EqualsDebugfsForCharacters(t *testing.T) {
	plain := rangetable.Merge(unicode.Han, unicode.Hangul, unicode.Co, unicode.Yi, unicode.Tangut, unicode.Cuneiform)
	var names []string
	for r := rune(0x80); r <= utf8.MaxRune; r++ {
		if utf8.ValidRune(r) && (r%97 == 0 || unicode.IsGraphic(r) && !unicode.Is(plain, r) || foldIgnored(r) && r < 0xe0200) {
			names = append(names, "X"+string(r)+"\u0301\u0323")
		}
	}
	compareFolded(t, names)
}

func TestFoldName_EqualsDebugfsForSequences(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	chars := []rune("aAßẞİıǰΐΆΣςᾼᾳ\u0345\u0301\u0323\u0327\u034f\u200d\ufe0f\u00adﬁÅÅ가힣각\U0001e921ⴀႠ\u2c2f𝐀中\U000e0100\u1e9b")
	var names []string
	for range 2000 {
		var name []rune
		for range 1 + r.IntN(8) {
			name = append(name, chars[r.IntN(len(chars))])
		}
		names = append(names, string(name))
	}
	compareFolded(t, names)
}

func TestFoldName_KnowsWhatIsNotUTF8(t *testing.T) {
	for _, name := range []string{"not \xff UTF-8", "\xed\xa0\x80", "\xc0\x80", "\xf4\x90\x80\x80", "A\xe2\x82"} {
		if folded, ok := foldName(name); ok {
			t.Errorf("%q is folded to %q", name, folded)
		}
	}
}

// foldedImage is an image with a small and a large directory that are case-folded, and one
// that is not.
func foldedImage(t testing.TB, source string, args ...string) string {
	t.Helper()
	testneed.Tools(t, "mke2fs", "debugfs", "e2fsck")
	path := mkfs(t, 16, false, append([]string{"-t", "ext4", "-b", "1024", "-N", "4096", "-O", "casefold,^has_journal", "-d", source}, args...)...)
	debugfs(t, path, "sif small flags 0x40080000", "sif large flags 0x40080000")
	command(t, "e2fsck", "-fyD", path)
	return path
}

// The kernel makes an htree of such a directory by its folded names, as e2fsck does.
func TestLookup_InCaseFoldedDirectoriesIgnoresCase(t *testing.T) {
	source := t.TempDir()
	// Names that are not UTF-8, a strict encoding does not have, and e2fsck makes no htree of.
	odd := []string{"not \xff UTF-8", "UPPER \xff"}
	names := []string{"Makefile", "ÄÖÜ", "straße", "Ångström", "ΟΔΥΣΣΕΎΣ", "İstanbul", "e\u0301tude", "한글", "zero\u200dwidth", "中文", "\U00010400"}
	must(t, os.Mkdir(filepath.Join(source, "large"), 0o755))
	for _, dir := range []string{"small", "plain"} {
		must(t, os.Mkdir(filepath.Join(source, dir), 0o755))
		for _, name := range append(names, odd...) {
			must(t, os.WriteFile(filepath.Join(source, dir, name), []byte(name), 0o644))
		}
	}
	for i := range 1000 {
		must(t, os.WriteFile(filepath.Join(source, "large", fmt.Sprintf("%s %d", names[i%len(names)], i)), nil, 0o644))
	}
	for _, v := range []struct {
		name string
		args []string
	}{
		{"utf8", []string{"-E", "encoding=utf8"}},
		{"without checksums", []string{"-O", "^metadata_csum"}},
		{"without dir_index", []string{"-O", "^dir_index"}},
	} {
		t.Run(v.name, func(t *testing.T) {
			fs, _ := openImage(t, foldedImage(t, source, v.args...))
			small, plain, large := lookup(t, fs, "small").Ino, lookup(t, fs, "plain").Ino, lookup(t, fs, "large").Ino
			var found []string
			must(t, fs.ReadDir(small, 0, false, func(e *backend.DirEntry) bool { found = append(found, e.Name); return true }))
			slices.Sort(found)
			want := slices.Sorted(slices.Values(append(names, odd...)))
			if !slices.Equal(found, want) {
				t.Errorf("%q, not %q", found, want)
			}
			for other, name := range map[string]string{
				"Makefile": "Makefile", "makefile": "Makefile", "MAKEFILE": "Makefile", "makefil": "", "makefile2": "",
				"äöü": "ÄÖÜ", "A\u0308öü": "ÄÖÜ", "STRASSE": "straße", "STRAẞE": "straße", "strase": "", "\u212bNGSTRO\u0308M": "Ångström",
				"οδυσσεύς": "ΟΔΥΣΣΕΎΣ", "i\u0307STANBUL": "İstanbul", "istanbul": "", "Étude": "e\u0301tude", "\u1112\u1161\u11ab글": "한글",
				"ZEROWIDTH": "zero\u200dwidth", "zero\u00adwidth": "zero\u200dwidth", "not \xff UTF-8": "not \xff UTF-8", "NOT \xff UTF-8": "",
				"UPPER \xff": "UPPER \xff", "upper \xff": "", "\U00010428": "\U00010400",
			} {
				a, err := fs.Lookup(small, other)
				if name == "" {
					if !errors.Is(err, backend.ErrNotExist) {
						t.Errorf("%q: inode %d, %v", other, a.Ino, err)
					}
				} else if b := lookup(t, fs, "small", name); err != nil || a.Ino != b.Ino {
					t.Errorf("%q: inode %d, %v; %q is inode %d", other, a.Ino, err, name, b.Ino)
				}
				if _, err := fs.Lookup(plain, other); other != name && !slices.Contains(names, other) && !errors.Is(err, backend.ErrNotExist) {
					t.Errorf("%q in a directory that is not case-folded: %v", other, err)
				}
			}
			var in inode
			must(t, fs.directory(large, &in))
			if indexed := !strings.Contains(v.name, "dir_index"); fs.indexed(&in) != indexed {
				t.Fatalf("the large directory has an htree: %v", !indexed)
			}
			n := 0
			must(t, fs.ReadDir(large, 0, false, func(e *backend.DirEntry) bool {
				n++
				for _, name := range []string{e.Name, strings.ToUpper(e.Name), strings.ToLower(e.Name)} {
					if name != e.Name && strings.ContainsRune(e.Name, 'İ') {
						continue // whose lower case is not its folding
					}
					if a := lookup(t, fs, "large", name); a.Ino != e.Ino {
						t.Errorf("%q is inode %d, %q inode %d", name, a.Ino, e.Name, e.Ino)
					}
					if !fs.indexed(&in) {
						continue
					}
					folded, _ := foldName(name)
					if ino, err := fs.findHashed(&in, &wanted{name: e.Name, hashed: folded}); err != nil || uint64(ino) != e.Ino {
						t.Errorf("%q in the htree: inode %d, %v", name, ino, err)
					}
				}
				return true
			}))
			if n != 1000 {
				t.Errorf("%d entries", n)
			}
			backendtest.Filesystem(t, fs)
		})
	}
}

// An encoding that is not known: names are what they are.
func TestLookup_WithAnotherEncodingIsExact(t *testing.T) {
	source := t.TempDir()
	for _, dir := range []string{"small", "large"} {
		must(t, os.Mkdir(filepath.Join(source, dir), 0o755))
		must(t, os.WriteFile(filepath.Join(source, dir, "Name"), nil, 0o644))
	}
	path := foldedImage(t, source)
	b, err := os.ReadFile(path)
	must(t, err)
	sb := b[superOffset:][:superBytes]
	binary.LittleEndian.PutUint16(sb[0x27c:], 2)
	binary.LittleEndian.PutUint32(sb[0x3fc:], crc32c(^uint32(0), sb[:0x3fc]))
	fs, err := New().Open(inMemory(b))
	must(t, err)
	dir := lookup(t, fs, "small").Ino
	lookup(t, fs, "small", "Name")
	if _, err := fs.Lookup(dir, "name"); !errors.Is(err, backend.ErrNotExist) {
		t.Error(err)
	}
}
