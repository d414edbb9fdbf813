package main

import (
	"fmt"
	"os"
	"strings"
)

// fuseConf is where fusermount3 reads what users may ask for.
const fuseConf = "/etc/fuse.conf"

// mayAllowOther checks what fusermount3 would refuse, and says where to change it.
func mayAllowOther(uid int, conf string) error {
	if uid == 0 {
		return nil
	}
	text, err := os.ReadFile(conf)
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("--allow-other: %w", err)
	}
	commented := 0
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		if line == "user_allow_other" {
			return nil
		}
		if strings.HasPrefix(line, "#") && strings.TrimSpace(strings.TrimLeft(line, "#")) == "user_allow_other" {
			commented = i + 1
		}
	}
	if commented > 0 {
		return fmt.Errorf("--allow-other: root must permit it first: line %d of %s, %q, is commented out", commented, conf, "user_allow_other")
	}
	return fmt.Errorf("--allow-other: root must permit it first by a line %q in %s", "user_allow_other", conf)
}
