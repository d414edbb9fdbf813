//go:build !race

package ext4

// underRace tells whether the tests run under the race detector.
const underRace = false
