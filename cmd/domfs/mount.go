package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"domfs/backend"
	"domfs/backend/all"
	"domfs/backend/run"
	"domfs/control"
	"domfs/vfs"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const mountAbout = "Mounts the domains of this host on MOUNTPOINT, an empty directory, and serves them " +
	"until it is unmounted or told to end by SIGTERM or SIGINT. What is there is in " +
	"domfs(5)."

// endGrace is how long files that are open at a SIGTERM stay readable.
const endGrace = 10 * time.Second

type mountCommand struct {
	*program
	XLConfig   []string `long:"xl-config" value-name:"DIR|FILE" description:"an xl domain configuration, or a directory of them; repeatable (default: /etc/xen/*.cfg and /etc/xen/auto)"`
	ImageDir   []string `long:"image-dir" value-name:"DIR" description:"a directory of disk images to show as a store though no disk lies in it, and in which backing files are followed; repeatable"`
	VG         []string `long:"vg" value-name:"NAME" description:"a volume group to work with; repeatable (default: all)"`
	SnapSize   string   `long:"snapshot-size" value-name:"SIZE|PERCENT" default:"20%" description:"the reserve of a snapshot on a thick logical volume, as a size or in percent of the volume"`
	AutoExtend string   `long:"autoextend" value-name:"THRESHOLD:STEP|none" default:"70:20" description:"extend a snapshot's reserve by STEP percent when THRESHOLD percent of it are used"`
	Foreign    bool     `long:"foreign" description:"let rmdir remove snapshots that domfs did not make"`
	RemoveVols bool     `long:"remove-volumes" description:"let rmdir of a running domain's disk remove its logical volume, too"`
	Map        string   `long:"map" default:"kpartx" choice:"kpartx" choice:"none" description:"whether snapshots on LVM are mapped as block devices as they are made"`
	NoPause    bool     `long:"no-pause" description:"leave domains running while they are snapshotted"`
	PauseTime  string   `long:"pause-timeout" value-name:"DURATION" default:"10s" description:"how long a domain may be paused for its snapshot"`
	FreezeCmd  string   `long:"freeze-cmd" value-name:"COMMAND" description:"a shell command that freezes a guest for its snapshot"`
	ThawCmd    string   `long:"thaw-cmd" value-name:"COMMAND" description:"a shell command that thaws it again"`
	FreezeTime string   `long:"freeze-timeout" value-name:"DURATION" default:"30s" description:"how long each of these commands may take"`
	AllowOther bool     `long:"allow-other" description:"let other users in, as far as the modes of the files let them"`
	Group      string   `long:"group" value-name:"NAME|GID" default:"0" description:"the group that may enter the domains' directories"`
	Daemon     bool     `long:"daemon" description:"serve in the background; return once the mount is there"`
	LogFile    string   `long:"log-file" value-name:"FILE" description:"append the log to FILE (default: standard error; with --daemon the system's log)"`
	LogFormat  string   `long:"log-format" default:"text" choice:"text" choice:"json" description:"how the log looks"`
	LockFile   string   `long:"lock-file" value-name:"FILE" description:"where daemons on one host take turns (default: /run/domfs.lock, or domfs.lock in $XDG_RUNTIME_DIR)"`
	Debug      bool     `long:"debug" description:"log each operation and each program that is run"`
	ReadyFD    int      `long:"ready-fd" hidden:"true" description:"set by --daemon: where to say that the mount is there"`
	Args       struct {
		Mountpoint string `positional-arg-name:"MOUNTPOINT"`
	} `positional-args:"yes" required:"yes"`
}

func (c *mountCommand) Execute(args []string) error {
	if err := noArguments(args); err != nil {
		return err
	}
	if c.ReadyFD > 0 {
		pipe, err := readyPipe(c.ReadyFD)
		if err != nil {
			return err
		}
		defer pipe.Close()
		_ = nameProcess() // it serves as well under another name
		err = c.serve(pipe.ready)
		pipe.failed(err)
		return err
	}
	if err := c.absolutePaths(); err != nil {
		return err
	}
	if c.Daemon {
		return c.startDaemon()
	}
	return c.serve(func(message string) { fmt.Fprintln(c.stdout, message) })
}

// absolutePaths makes every path independent of where the program runs: the daemon's own
// folder is /, so that it keeps nothing busy, itself least of all.
func (c *mountCommand) absolutePaths() error {
	paths := []*string{&c.LogFile, &c.LockFile}
	for i := range c.XLConfig {
		paths = append(paths, &c.XLConfig[i])
	}
	for i := range c.ImageDir {
		paths = append(paths, &c.ImageDir[i])
	}
	for _, p := range paths {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	resolved, err := resolveMountpoint(c.Args.Mountpoint)
	if errors.Is(err, fs.ErrNotExist) {
		resolved, err = filepath.Abs(c.Args.Mountpoint)
	}
	if err != nil {
		return fmt.Errorf("mountpoint: %w", err)
	}
	c.Args.Mountpoint = resolved
	return nil
}

// serve mounts, calls ready with a line for the user, and returns when the mount has
// ended.
func (c *mountCommand) serve(ready func(string)) error {
	// Before anything else: a signal between the mount and its handler would leave a dead
	// mountpoint, and so would a reader of our one line of output who goes away.
	signal.Ignore(unix.SIGPIPE)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer signal.Stop(signals)

	log, closeLog, err := newLog(logOptions{file: c.LogFile, json: c.LogFormat == "json", debug: c.Debug, daemon: c.ReadyFD > 0})
	if err != nil {
		return err
	}
	defer closeLog()
	options, err := c.hostOptions(log)
	if err != nil {
		return err
	}
	gid, err := groupID(c.Group)
	if err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	runner := run.New(log)
	mountpoint := c.Args.Mountpoint
	if err := prepareMountpoint(c.ctx, mountpoint, log, runner); err != nil {
		return err
	}

	// What a daemon has left that was killed with all of its processes: guests that wait.
	if err := releaseHeld(c.ctx, options.LockFile, log); err != nil {
		log.Error("a guest may be paused or frozen that was so for a snapshot: see to it by hand", zap.Error(err))
	}

	host := control.New(options)
	stop := c.onSignal(signals, mountpoint, log, runner)
	server, err := vfs.Mount(vfs.Options{
		Host: host, Log: log, Mountpoint: mountpoint, AllowOther: c.AllowOther, GID: gid,
		Debug: c.Debug, Version: versionString(), FSName: "domfs",
	})
	if err != nil {
		return errors.Join(err, host.Close())
	}
	raiseReadAhead(mountpoint, log)
	gone := make(chan struct{})
	go func() { server.Wait(); close(gone) }()

	domains, err := c.start(host)
	if err != nil {
		c.end(server, gone, mountpoint, runner, log)
		return errors.Join(err, host.Close())
	}
	log.Info("mounted", zap.String("mountpoint", mountpoint), zap.Int("domains", domains), zap.String("version", versionString()))
	ready(fmt.Sprintf("domfs: mounted on %s, %s", mountpoint, count(domains, "domain")))
	c.notify(log, "READY=1\nSTATUS=mounted on "+mountpoint)

	select {
	case <-gone:
	case <-stop:
		c.notify(log, "STOPPING=1")
		c.end(server, gone, mountpoint, runner, log)
	}
	err = host.Close()
	if errors.Is(err, backend.ErrBusy) {
		// Files that were open in a detached mount: they end with us.
		log.Debug("disks were still open at the end", zap.Error(err))
		err = nil
	}
	waitFor(gone, time.Second) // a change that has just ended still has to be answered
	log.Info("unmounted", zap.String("mountpoint", mountpoint))
	return err
}

// start clears up what a crash left, and counts the domains.
func (c *mountCommand) start(host *control.Host) (domains int, err error) {
	if err := host.Start(c.ctx); err != nil {
		return 0, err
	}
	inventory, err := host.Inventory(c.ctx)
	if err != nil {
		return 0, fmt.Errorf("read the host's domains: %w", err)
	}
	return len(inventory.Domains), nil
}

// end takes the mount away. One that is in use leaves its place at once; what is open in
// it stays readable for a while.
func (c *mountCommand) end(server *vfs.Server, gone <-chan struct{}, mountpoint string, runner *run.Runner, log *zap.Logger) {
	if err := server.Unmount(); err != nil {
		log.Warn("the mount is in use: detached; what is open stays readable for a moment",
			zap.String("mountpoint", mountpoint), zap.String("by", inUseBy(mountpoint)), zap.Duration("for", endGrace))
		if err := detach(c.ctx, mountpoint, runner); err != nil && mountedHere(mountpoint) {
			log.Error("the mount cannot be detached", zap.Error(err))
		}
	}
	waitFor(gone, endGrace)
}

// hostOptions makes the drivers and checks what was asked for.
func (c *mountCommand) hostOptions(log *zap.Logger) (control.Options, error) {
	for _, path := range c.XLConfig {
		if _, err := os.Stat(path); err != nil {
			return control.Options{}, fmt.Errorf("--xl-config: %w", err)
		}
	}
	for _, path := range c.ImageDir {
		if info, err := os.Stat(path); err != nil {
			return control.Options{}, fmt.Errorf("--image-dir: %w", err)
		} else if !info.IsDir() {
			return control.Options{}, fmt.Errorf("--image-dir: %s is not a directory", path)
		}
	}
	ofLVM := all.LVM{VGs: c.VG, SnapshotSize: c.SnapSize}
	if err := ofLVM.Check(); err != nil {
		return control.Options{}, err
	}
	extend, err := control.ParseAutoExtend(c.AutoExtend)
	if err != nil {
		return control.Options{}, fmt.Errorf("--autoextend: %w", err)
	}
	uid := os.Geteuid()
	if c.AllowOther {
		if err := mayAllowOther(uid, fuseConf); err != nil {
			return control.Options{}, err
		}
	}
	lock := c.LockFile
	if lock == "" {
		lock = defaultLockFile(uid, os.Getenv("XDG_RUNTIME_DIR"), "/tmp")
	}
	if err := claimLockFile(lock, uid); err != nil {
		return control.Options{}, err
	}
	timeout, err := durationOption("--freeze-timeout", c.FreezeTime)
	if err != nil {
		return control.Options{}, err
	}
	pause, err := durationOption("--pause-timeout", c.PauseTime)
	if err != nil {
		return control.Options{}, err
	}
	if err := all.CheckPauseTimeout(pause); err != nil {
		return control.Options{}, err
	}
	freezing := all.Freeze{Freeze: c.FreezeCmd, Thaw: c.ThawCmd, Timeout: timeout}
	if err := freezing.Check(); err != nil {
		return control.Options{}, err
	}
	drivers := all.Options{XLConfig: c.XLConfig, ImageDirs: c.ImageDir, LVM: ofLVM, Freeze: freezing, PauseTimeout: pause, Records: lock + heldInfix, Log: log}
	var mapNew []string
	if c.Map == "kpartx" {
		mapNew = []string{"lvm"}
	}
	mapper, noMapper := all.Mapper(drivers)
	return control.Options{
		Hypervisors: all.Hypervisors(drivers),
		Stores:      all.Stores(drivers),
		Prober:      all.Prober(),
		Layouts:     all.Layouts(),
		Filesystems: all.Filesystems(),
		Assemblers:  all.Assemblers(),
		Log:         log,
		Mapper:      mapper,
		NoMapper:    noMapper,
		MapNew:      mapNew,
		LockFile:    lock,
		ErrnoName:   vfs.ErrnoName,
		AutoExtend:  extend,
		NoPause:     c.NoPause,
		PauseLimit:  pause,
		Freezer:     all.Freezer(drivers),
		Foreign:     c.Foreign,

		RemoveVolumes: c.RemoveVols,
	}, nil
}

// durationOption reads an option's value.
func durationOption(option, value string) (time.Duration, error) {
	d, err := time.ParseDuration(value)
	if err != nil {
		return 0, fmt.Errorf("%s: %q is no duration such as 30s", option, value)
	}
	return d, nil
}

// onSignal closes stop at the first signal. The second ends the program on the spot: the
// mount goes from its place, a change under way is cleared up by the next start.
func (c *mountCommand) onSignal(signals <-chan os.Signal, mountpoint string, log *zap.Logger, runner *run.Runner) (stop chan struct{}) {
	stop = make(chan struct{})
	go func() {
		s := <-signals
		log.Info("ending", zap.Stringer("signal", s))
		close(stop)
		s = <-signals
		log.Warn("ending at once", zap.Stringer("signal", s))
		if mountedHere(mountpoint) {
			if err := detach(context.WithoutCancel(c.ctx), mountpoint, runner); err != nil {
				log.Error("still mounted", zap.Error(err))
			}
		}
		os.Exit(exitFailure)
	}()
	return stop
}

// mountedHere tells whether the uppermost mount on path is of domfs.
func mountedHere(path string) bool {
	top, mounted, err := topMount(path)
	return err == nil && mounted && top.Type == fsType
}

func (c *mountCommand) notify(log *zap.Logger, state string) {
	if err := notify(os.Getenv("NOTIFY_SOCKET"), state); err != nil {
		log.Warn("systemd could not be told", zap.Error(err))
	}
}

func waitFor(done <-chan struct{}, limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// count is n with its noun: "1 domain", "3 domains".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
