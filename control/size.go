package control

import (
	"fmt"
	"math/big"
	"strings"

	"domfs/backend"
)

const maxSizeText = 64 // bytes; a longer one is no size

// ParseSize reads a size: a decimal number of bytes, or of K, M, G, T or P (powers of 1024, in
// either case, with B or iB after it or not), with + before it for a difference. A fraction
// needs a unit; what is then a fraction of a byte is rounded up. ErrInvalid otherwise.
func ParseSize(text string) (delta bool, sizeBytes int64, err error) {
	number, delta := strings.CutPrefix(text, "+")
	end := strings.LastIndexAny(number, "0123456789.") + 1
	number, unit := number[:end], number[end:]
	shift, ok := unitShift(unit)
	whole, fraction, hasPoint := strings.Cut(number, ".")
	if len(text) > maxSizeText || !ok || !isDigits(whole) || hasPoint && (!isDigits(fraction) || shift == 0) {
		return false, 0, fmt.Errorf("%q is not a size; write a number of bytes, or one such as 20G, 1.5T or +512M: %w", oneLine(text[:min(len(text), maxSizeText)]), backend.ErrInvalid)
	}
	n, _ := new(big.Int).SetString(whole+fraction, 10) // only digits: cannot fail
	n.Lsh(n, shift)
	scale := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(len(fraction))), nil)
	rest := new(big.Int)
	n.QuoRem(n, scale, rest)
	if rest.Sign() > 0 {
		n.Add(n, big.NewInt(1))
	}
	if !n.IsInt64() {
		return false, 0, fmt.Errorf("%s is more bytes than any volume can have: %w", text, backend.ErrInvalid)
	}
	return delta, n.Int64(), nil
}

// unitShift is the power of two that a unit stands for.
func unitShift(unit string) (shift uint, ok bool) {
	switch u := strings.ToUpper(unit); u {
	case "", "B":
		return 0, true
	default:
		i := strings.IndexByte("KMGTP", u[0])
		if i < 0 || u[1:] != "" && u[1:] != "B" && u[1:] != "IB" {
			return 0, false
		}
		return uint(10 * (i + 1)), true
	}
}
