package hostdev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"domfs/backend"
	"domfs/backend/run"

	"golang.org/x/sys/unix"
)

// The rule stands behind 55-dm.rules, which find out what the tool that made a device asked for,
// and before all rules that look into devices or activate what is on them. It lies in /run: it is
// gone after a boot, as the mappings are.
const (
	udevControl = "/run/udev/control" // udevd's socket: there where it runs
	udevRules   = "/run/udev/rules.d/55-domfs.rules"
)

const rules = `# Written by domfs. Its block devices show what guests wrote: nobody looks into them or activates
# what is there (LVM, md, Btrfs, links below /dev/disk).
ACTION=="remove", GOTO="domfs_end"
SUBSYSTEM!="block", GOTO="domfs_end"
KERNEL=="dm-*", ENV{DM_UUID}=="DOMFS-*|LVM-domfs-*|part*-DOMFS-*|part*-LVM-domfs-*", GOTO="domfs_quiet"
KERNEL=="loop*", ATTR{loop/backing_file}=="*/.domfs/*", GOTO="domfs_quiet"
GOTO="domfs_end"
LABEL="domfs_quiet"
ENV{DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG}="1"
ENV{DM_UDEV_DISABLE_DISK_RULES_FLAG}="1"
ENV{DM_UDEV_DISABLE_OTHER_RULES_FLAG}="1"
ENV{UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG}="1"
OPTIONS:="nowatch"
LABEL="domfs_end"
`

// Quiet makes udev leave our devices alone: it writes the rule where it is not there yet. Without udev there
// is nothing to do. Where it fails, no device may be made.
func Quiet(ctx context.Context, runner *run.Runner) error {
	if err := writeRule(ctx, runner); err != nil {
		return fmt.Errorf("udev cannot be told to leave the mappings alone, so there are none: %w", err)
	}
	return nil
}

func writeRule(ctx context.Context, runner *run.Runner) error {
	if _, err := os.Stat(udevControl); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if have, err := os.ReadFile(udevRules); err == nil && bytes.Equal(have, []byte(rules)) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(udevRules), 0o755); err != nil {
		return failed("make", filepath.Dir(udevRules), err)
	}
	fresh := udevRules + ".tmp" // udev reads names in .rules only
	if err := os.WriteFile(fresh, []byte(rules), 0o644); err != nil {
		return failed("write", fresh, err)
	}
	// Whatever our umask is: others' tools read rules, too.
	if err := errors.Join(os.Chmod(filepath.Dir(udevRules), 0o755), os.Chmod(fresh, 0o644)); err != nil {
		return fmt.Errorf("let others read %s: %w: %w", udevRules, backend.ErrIO, err)
	}
	if err := unix.Rename(fresh, udevRules); err != nil {
		return failed("write", udevRules, err)
	}
	// By itself udev looks for new rules only every few seconds.
	if _, err := runner.Run(ctx, "udevadm", "control", "--reload", "--timeout=20"); err != nil {
		os.Remove(udevRules) // the file stands for a rule that is in force
		return err
	}
	return nil
}
