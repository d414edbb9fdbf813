package backendtest

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"domfs/backend"
)

var uuidForm = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// Hypervisor is the contract suite of backend.Hypervisor. open makes one whose host
// has a domain at least; each subtest calls it anew.
func Hypervisor(t *testing.T, open func(t *testing.T) backend.Hypervisor) {
	t.Run("HasAName", func(t *testing.T) {
		if name := open(t).Name(); !regexp.MustCompile(`^[a-z][a-z0-9]*$`).MatchString(name) {
			t.Errorf("Name() is %q, want one lower-case word", name)
		}
	})
	t.Run("ListsDomainsThatTheTreeCanShow", func(t *testing.T) {
		for _, fault := range domainFaults(listDomains(t, open(t))) {
			t.Error(fault)
		}
	})
	t.Run("ListsTheSameAgain", func(t *testing.T) {
		h := open(t)
		first, second := listDomains(t, h), listDomains(t, h)
		if a, b := domainNames(first), domainNames(second); !slices.Equal(a, b) {
			t.Errorf("two calls listed %q, then %q", a, b)
		}
	})
	t.Run("GivesItsListAway", func(t *testing.T) {
		h := open(t)
		first := listDomains(t, h)
		want := domainNames(first)
		for i := range first {
			first[i].Name = "overwritten"
			for j := range first[i].Disks {
				first[i].Disks[j].VDev = "overwritten"
			}
			for j := range first[i].Warnings {
				first[i].Warnings[j] = "overwritten"
			}
		}
		if again := fmt.Sprint(listDomains(t, h)); strings.Contains(again, "overwritten") {
			t.Errorf("what a caller did to its list is in the next one (of %q): %s", want, again)
		}
	})
	t.Run("GivesUpWhenItsContextEnds", func(t *testing.T) {
		h := open(t)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		began := time.Now()
		list, err := h.Domains(ctx)
		if err == nil {
			t.Errorf("Domains with a cancelled context listed %q without an error", domainNames(list))
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("Domains took %v to see that its context was cancelled", took)
		}
		listDomains(t, h) // and works again
	})
	t.Run("IsSafeForConcurrentUse", func(t *testing.T) {
		h := open(t)
		began := time.Now()
		want := domainNames(listDomains(t, h))
		callers, calls := 8, 5
		if time.Since(began) > 100*time.Millisecond { // all at once would keep each waiting for longer than it may
			callers, calls = 3, 3
		}
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				for range calls {
					list, err := h.Domains(context.Background())
					if err != nil {
						t.Errorf("Domains: %v", err)
						return
					}
					if got := domainNames(list); !slices.Equal(got, want) {
						t.Errorf("listed %q, want %q", got, want)
						return
					}
				}
			})
		}
		wg.Wait()
	})
}

func listDomains(t *testing.T, h backend.Hypervisor) []backend.Domain {
	t.Helper()
	list, err := h.Domains(context.Background())
	if err != nil {
		t.Fatalf("Domains: %v", err)
	}
	if len(list) == 0 {
		t.Fatal("Domains lists none: the contract is for a host that has some")
	}
	return list
}

func domainNames(list []backend.Domain) []string {
	var out []string
	for _, d := range list {
		out = append(out, d.Name)
	}
	return out
}

// domainFaults says what of a list breaks backend.Domain's and backend.Disk's promises.
func domainFaults(list []backend.Domain) []string {
	var faults []string
	seen := map[string]bool{}
	for _, d := range list {
		fault := func(format string, args ...any) {
			faults = append(faults, fmt.Sprintf("domain %q: %s", d.Name, fmt.Sprintf(format, args...)))
		}
		if f := componentFault(d.Name); f != "" {
			fault("its name %s", f)
		}
		if seen[d.Name] {
			fault("is listed twice")
		}
		seen[d.Name] = true
		if d.UUID != "" && !uuidForm.MatchString(d.UUID) {
			fault("UUID %q is not in lower case with hyphens", d.UUID)
		}
		switch d.State {
		case backend.StateOff:
			if d.ID != -1 {
				fault("is off and has the ID %d, want -1", d.ID)
			}
		case backend.StateRunning, backend.StatePaused, backend.StateShutdown, backend.StateCrashed, backend.StateDying:
			if d.ID < 0 {
				fault("is %s and has the ID %d", d.State, d.ID)
			}
		default:
			fault("unknown state %q", d.State)
		}
		if d.Config != "" && !filepath.IsAbs(d.Config) {
			fault("Config %q is not an absolute path", d.Config)
		}
		for _, w := range d.Warnings {
			if strings.TrimSpace(w) == "" || strings.Contains(w, "\n") {
				fault("warning %q is not a sentence on one line", w)
			}
		}
		if d.Err != nil && strings.Contains(d.Err.Error(), "\n") {
			fault("error %q is not one line", d.Err)
		}
		for _, f := range diskFaults(d.Disks) {
			fault("%s", f)
		}
	}
	return faults
}

func diskFaults(disks []backend.Disk) []string {
	var faults []string
	seen := map[string]bool{}
	for _, k := range disks {
		fault := func(format string, args ...any) {
			faults = append(faults, fmt.Sprintf("disk %q: %s", k.VDev, fmt.Sprintf(format, args...)))
		}
		if f := componentFault(k.VDev); f != "" {
			fault("its vdev %s", f)
		}
		if seen[k.VDev] {
			fault("is listed twice")
		}
		seen[k.VDev] = true
		if k.Mode != backend.ReadWrite && k.Mode != backend.ReadOnly {
			fault("unknown mode %q", k.Mode)
		}
		if k.Source == "" {
			if !k.CDROM {
				fault("has no source, and is no CD-ROM drive")
			}
			continue
		}
		if k.Format == "" {
			fault("has a source and no format")
		}
		if k.Script == "" && k.BackendDomain == "" && !filepath.IsAbs(k.Source) && !strings.Contains(k.Source, ":") {
			fault("source %q is neither an absolute path nor a URL", k.Source)
		}
	}
	return faults
}

// componentFault says why name cannot be one component of a path.
func componentFault(name string) string {
	switch {
	case name == "":
		return "is empty"
	case name == "." || name == "..":
		return "is " + name
	case strings.ContainsAny(name, "/\x00"):
		return "holds a '/' or NUL"
	case len(name) > 255:
		return fmt.Sprintf("has %d bytes, a path component has 255", len(name))
	}
	return ""
}
