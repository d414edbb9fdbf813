# make          build bin/domfs
# make demo     a sample host of image files, mounted on .demo/mnt, and what to do with it
# make test     every test; its last line counts them
# make help     the other targets

GO         ?= go
PREFIX     ?= /usr/local
DESTDIR    ?=
DEMO_DIR   ?= $(CURDIR)/.demo
FUZZTIME   ?= 10s
MUTATIONS  ?= 10000
MUTATE_DIR ?= $(CURDIR)/.mutate
VERSION    ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
# The oldest Go that builds this, as go.mod has it.
GO_OLDEST  := $(shell sed -n 's/^go //p' go.mod)
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.7.0
# Programs that belong to the tests; the pattern ./... does not see them.
TOOLS       = ./testdata/harness ./testdata/bench ./testdata/mutate ./testdata/tool ./testdata/tally ./testdata/lab/...
TESTFLAGS   ?=
BENCHFLAGS  ?=
MUTATEFLAGS ?=
LABFLAGS    ?=
# Flags for the shell, each word quoted: a pattern may have parentheses, and a dollar sign ($$), but no blanks.
quoted      = $(foreach word,$(subst ",,$(subst ',,$(1))),'$(word)')
# Tests of these names change the LVM of the machine that they run on.
LABTESTS    = ^TestLab[_A-Z]
FUZZTARGETS ?=

export PATH := $(PATH):/usr/sbin:/sbin
# The version is given above. Go's own look at the repository fails in one that belongs to
# another user, such as a folder shared with a container.
export GOFLAGS := $(shell $(GO) env GOFLAGS 2>/dev/null) -buildvcs=false

.PHONY: build help deps go demo demo-stop test lint bench fuzz mutate race install clean
.DEFAULT_GOAL := build

build: go ## bin/domfs, a static program
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/domfs ./cmd/domfs

help:
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 20

go:
	@found=$$($(GO) env GOVERSION) || { \
		echo "Go $(GO_OLDEST) or newer is needed, and '$(GO)' does not run here: see https://go.dev/dl (Debian 12's own is too old)." >&2; exit 1; }; \
	oldest=$$(printf '%s\n' "$${found#go}" '$(GO_OLDEST)' | sort -V | head -n 1); \
	[ "$$oldest" = '$(GO_OLDEST)' ] || { \
		echo "Go $(GO_OLDEST) or newer is needed, and this is $$found: see https://go.dev/dl (Debian 12's own is too old)." >&2; exit 1; }

deps: ## install the Debian packages that the other targets use, or name them
	@testdata/deps run demo test lint bench

demo: go ## make a sample host and do the main job on it
	@testdata/deps run demo
	@$(MAKE) --no-print-directory build
	@testdata/demo start '$(DEMO_DIR)' bin/domfs

demo-stop: ## unmount the demo and remove it
	@testdata/demo stop '$(DEMO_DIR)' bin/domfs

test: go ## every test, under the race detector, with the real program
	@testdata/deps run demo test
	@mkdir -p bin && $(GO) build -o bin/harness ./testdata/harness
	@bin/harness -- $(GO) test -json -race -count=1 -timeout 15m -skip '$(LABTESTS)' $(TESTFLAGS) ./... $(TOOLS)

race: test ## the same: make test is under the race detector

lab: go ## the tests that need LVM and its kernel, or Xen, in machines of their own (QEMU, no KVM needed)
	@testdata/deps lab
	@mkdir -p bin && CGO_ENABLED=0 $(GO) build -o bin/lab ./testdata/lab
	@bin/lab -go '$(GO)' $(call quoted,$(LABFLAGS))

lab-shell: go ## a prompt in that machine: two volume groups, guests' disks on them, domfs on /mnt/domfs; LABFLAGS=-xen for one with Xen
	@testdata/deps lab
	@mkdir -p bin && CGO_ENABLED=0 $(GO) build -o bin/lab ./testdata/lab
	@bin/lab -go '$(GO)' -shell $(call quoted,$(LABFLAGS))

lab-here: go ## the same tests on this machine: root, LVM and device-mapper, and nobody else at work on its volumes
	@testdata/deps run demo test lvm
	@mkdir -p bin && CGO_ENABLED=0 $(GO) build -tags faults -o bin/domfs-faults ./cmd/domfs
	@$(GO) build -o bin/harness ./testdata/harness && CGO_ENABLED=0 $(GO) build -o bin/lab ./testdata/lab
	@DOMFS_LAB=1 DOMFS_PROGRAM=$(CURDIR)/bin/domfs-faults bin/harness -- $(GO) test -json -tags faults -count=1 -p 1 -timeout 30m -run '$(LABTESTS)' $(TESTFLAGS) $$(bin/lab -list)

lint: go ## gofmt, vet, staticcheck, shellcheck, mandoc
	@testdata/deps lint
	@unformatted=$$("$$($(GO) env GOROOT)/bin/gofmt" -l */) && [ -z "$$unformatted" ] || { echo "gofmt would change:" $$unformatted >&2; exit 1; }
	$(GO) vet ./... $(TOOLS)
	$(GO) vet -tags faults ./backend/fault ./testdata/mutate
	$(GO) run $(STATICCHECK) ./... $(TOOLS)
	shellcheck $$(grep -rlIE '^#!.*[ /](ba)?sh$$' --exclude-dir=.git --exclude-dir=.demo --exclude-dir=bin .)
	shellcheck --shell=bash cmd/domfs/dist/domfs.bash
	mandoc -T lint -W warning cmd/domfs/dist/*.[15]

bench: go ## compare with the kernel's mount of the same image, QEMU's export of a qcow2 one, and in the lab with LVM's commands
	@testdata/deps run demo bench lab
	$(GO) run ./testdata/bench $(BENCHFLAGS)
	@mkdir -p bin && CGO_ENABLED=0 $(GO) build -o bin/lab ./testdata/lab
	@bin/lab -go '$(GO)' -bench '^BenchmarkLab[_A-Z]' $(call quoted,$(LABFLAGS))

fuzz: go ## each fuzz target for FUZZTIME, then MUTATIONS images with changed metadata
	@testdata/deps run demo test
	@testdata/fuzz '$(GO)' '$(FUZZTIME)' $(FUZZTARGETS)
	@$(MAKE) --no-print-directory mutate

mutate: go ## MUTATIONS images with changed metadata, each read in a process of 256 MiB and 10 s
	@testdata/deps run demo
	@mkdir -p bin && CGO_ENABLED=0 $(GO) build -o bin/mutate ./testdata/mutate
	nice bin/mutate -n $(MUTATIONS) -keep '$(MUTATE_DIR)' $(MUTATEFLAGS)

install: build ## below DESTDIR/PREFIX: program, manual, completions, systemd unit
	install -D -m 755 bin/domfs $(DESTDIR)$(PREFIX)/bin/domfs
	install -D -m 644 cmd/domfs/dist/domfs.1 $(DESTDIR)$(PREFIX)/share/man/man1/domfs.1
	install -D -m 644 cmd/domfs/dist/domfs.5 $(DESTDIR)$(PREFIX)/share/man/man5/domfs.5
	install -D -m 644 cmd/domfs/dist/domfs.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/domfs
	install -D -m 644 cmd/domfs/dist/_domfs $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_domfs
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|/usr/bin/domfs|$(PREFIX)/bin/domfs|' cmd/domfs/dist/domfs.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/domfs.service
	chmod 644 $(DESTDIR)$(PREFIX)/lib/systemd/system/domfs.service

clean: ## what the other targets built
	@if [ -d '$(DEMO_DIR)' ]; then $(MAKE) --no-print-directory demo-stop; fi
	rm -rf bin '$(MUTATE_DIR)'
