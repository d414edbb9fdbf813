package main

import "domfs/vfs"

const treeAbout = "Prints the tree that a mount shows, one node a line, with its mode and what it holds. " +
	"Nothing is mounted or read."

type treeCommand struct{ *program }

func (c *treeCommand) Execute(args []string) error {
	if err := noArguments(args); err != nil {
		return err
	}
	return vfs.WriteTree(c.stdout)
}
