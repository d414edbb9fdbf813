package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

const versionAbout = "Prints the version of domfs, and of Go that it was built with."

// version is set by the linker (-X main.version=…) where the build knows it.
var version string

type versionCommand struct{ *program }

func (c *versionCommand) Execute(args []string) error {
	if err := noArguments(args); err != nil {
		return err
	}
	_, err := fmt.Fprintf(c.stdout, "domfs %s (%s %s/%s)\n", versionString(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}

// versionString is the linker's word, else what the build recorded, else "devel".
func versionString() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "devel-" + s.Value[:12]
		}
	}
	return "devel"
}
