package main

import (
	"context"
	"os"
	"time"

	"domfs/backend/all"
	keeper "domfs/backend/run/hold"

	"go.uber.org/zap"
)

const holdAbout = "Keeps a guest paused or frozen for a daemon, and ends that when it is told to, when the daemon has ended, " +
	"or when its time is over. It is not meant to be run by hand."

// heldInfix is what stands between the lock file's path and the name of a record of what is held.
const heldInfix = ".held-"

// holdCommand is the keeper: a process of the daemon's own, that must hold nothing of its mount.
type holdCommand struct {
	*program
	Args struct {
		Kind string `positional-arg-name:"KIND"`
		Name string `positional-arg-name:"NAME"`
	} `positional-args:"yes" required:"yes"`
}

func (c *holdCommand) Execute(args []string) error {
	if err := noArguments(args); err != nil {
		return err
	}
	_ = nameProcess() // it serves as well under another name
	// There is nobody at our standard error; what goes wrong once the daemon has ended is in the system's log.
	log, closeLog, err := newLog(logOptions{daemon: true})
	if err != nil {
		log, closeLog = zap.NewNop(), func() {}
	}
	defer closeLog()
	return keeper.Keep(os.Stdin, os.Stdout, all.Holds(log), log)
}

const releaseAbout = "Resumes and thaws the guests that a daemon has left paused or frozen which was killed together with " +
	"all of its processes. The service does so when it ends, and a daemon when it starts."

// releaseLimit is how long it is tried to end what was held.
const releaseLimit = time.Minute

// releaseCommand ends what is held by nobody any more.
type releaseCommand struct {
	*program
	LockFile string `long:"lock-file" value-name:"FILE" description:"as that of the daemon"`
}

func (c *releaseCommand) Execute(args []string) error {
	if err := noArguments(args); err != nil {
		return err
	}
	log, closeLog, err := newLog(logOptions{})
	if err != nil {
		return err
	}
	defer closeLog()
	lock := c.LockFile
	if lock == "" {
		lock = defaultLockFile(os.Geteuid(), os.Getenv("XDG_RUNTIME_DIR"), "/tmp")
	}
	return releaseHeld(c.ctx, lock, log)
}

// releaseHeld ends what daemons with that lock file have left held.
func releaseHeld(ctx context.Context, lock string, log *zap.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, releaseLimit)
	defer cancel()
	return keeper.Release(ctx, lock+heldInfix, all.Holds(log), log)
}
