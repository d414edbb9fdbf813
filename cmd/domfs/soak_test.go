package main

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// soakSeconds is how long TestSoak works: DOMFS_SOAK, else a while.
func soakSeconds(t *testing.T) int {
	t.Helper()
	value := os.Getenv("DOMFS_SOAK")
	if value == "" {
		return 20
	}
	n, err := strconv.Atoi(value)
	if err != nil {
		t.Fatalf("DOMFS_SOAK: %v", err)
	}
	return n
}

// soakScript makes, reads and removes snapshots of its own, and walks over all of them. Others' may
// vanish under a walk: that is ENOENT, nothing else. A removal may find another
// shell's walk reading: that is EBUSY, and passes.
const soakScript = `
set -u
i=0
end=$(($(date +%s) + $1))
while [ "$(date +%s)" -lt "$end" ]; do
    i=$((i + 1))
    name=snapshots/vm/$2-$i
    mkdir "$name" || { echo "mkdir failed: $(tail -n 1 xenstore/vm/last_error)" >&2; exit 1; }
    LC_ALL=C ls -R snapshots/vm xenstore/vm >/dev/null 2>"$3" || true
    if grep -v ': No such file or directory$' "$3" >&2; then echo "ls -R said so" >&2; exit 1; fi
    [ "$(cat "$name/disks/xvda/files/etc/hostname")" = vm ] || { echo "hostname of $name" >&2; exit 1; }
    cat "$name/disks/xvda/raw" | cmp - "$4" || exit 1
    tries=0
    until LC_ALL=C rmdir "$name" 2>"$3"; do
        grep -q ': Device or resource busy$' "$3" || { cat "$3" >&2; exit 1; }
        tries=$((tries + 1))
        [ $tries -lt 1000 ] || { echo "$name stays busy: $(tail -n 1 xenstore/vm/last_error)" >&2; exit 1; }
        sleep 0.02
    done
    [ ! -e "$name" ] || { echo "$name is there after rmdir" >&2; exit 1; }
done
echo "$i"
`

func TestSoak_FourShellsOnOneDomain(t *testing.T) {
	seconds := soakSeconds(t)
	h := tinyHost(t)
	m := h.mount()
	m.snapshot("vm", "warm")
	must(t, readAny(m.at("snapshots/vm/warm/disks/xvda/files")))
	must(t, os.Remove(m.at("snapshots/vm/warm")))
	before := m.descriptors()

	type result struct {
		rounds string
		err    error
	}
	results := make(chan result, 4)
	for shell := range 4 {
		go func() {
			cmd := exec.Command("bash", "-c", soakScript, "bash", strconv.Itoa(seconds), strconv.Itoa(shell),
				fmt.Sprintf("%s/errors-%d", h.dir, shell), h.images+"/a.img")
			cmd.Dir = h.mnt
			var stderr strings.Builder
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if err != nil {
				err = fmt.Errorf("shell %d: %w: %s", shell, err, stderr.String())
			}
			results <- result{strings.TrimSpace(string(out)), err}
		}()
	}
	limit := time.After(time.Duration(seconds)*time.Second + 2*endLimit)
	for range 4 {
		select {
		case r := <-results:
			if r.err != nil {
				t.Error(r.err)
			} else {
				t.Logf("%s rounds", r.rounds)
			}
		case <-limit:
			// The mount's end ends them as well.
			_ = m.cmd.Process.Kill()
			t.Fatal("the shells hang")
		}
	}
	if names, litter := m.names("snapshots/vm"), h.litter(); len(names)+len(litter) != 0 {
		t.Errorf("left: %q %q", names, litter)
	}
	m.leaves(before)
	m.stop()
}
