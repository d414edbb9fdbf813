//go:build race

package main

// underRace tells whether the tests run under the race detector: then the program does, too.
const underRace = true
