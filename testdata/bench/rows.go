package main

import "regexp"

// scene is a fresh mount, and the rows that are measured on it one after another.
type scene struct {
	name string
	on   source
	cold bool   // the image is out of the host's page cache at its beginning
	also string // a contender that plays it once, if it is installed: it is slow
	rows []row
}

// source is what is read.
type source string

const (
	onSnapshot   source = "snapshot"
	onQcow2      source = "qcow2"
	onCompressed source = "compressed qcow2"
)

func (s scene) matches(wanted *regexp.Regexp) bool {
	for _, r := range s.rows {
		if wanted.MatchString(r.name) {
			return true
		}
	}
	return false
}

// row is one line of the table.
type row struct {
	name    string
	measure measure
	unit    unit
	target  target
	alone   bool // measured on domfs only
}

// scenes are all that can be measured.
var scenes = []scene{
	{name: "find", on: onSnapshot, also: "fuse2fs", rows: []row{
		{name: "find, first", measure: find, target: atMost(4)},
		{name: "find, again", measure: find, target: atMost(2.2)},
	}},
	{name: "ls -lR", on: onSnapshot, also: "fuse2fs", rows: []row{
		{name: "ls -lR, first", measure: listLong, target: atMost(1.6)},
		{name: "ls -lR, again", measure: listLong, target: atMost(1.6)},
	}},
	{name: "du", on: onSnapshot, also: "fuse2fs", rows: []row{
		{name: "du, first", measure: diskUsage, target: atMost(1.5)},
		{name: "du, again", measure: diskUsage, target: atMost(1.7)},
	}},
	{name: "tar", on: onSnapshot, also: "fuse2fs", rows: []row{
		{name: "tar of 35,000 files, first", measure: archive, target: atMost(1.6)},
		{name: "tar of 35,000 files, again", measure: archive, target: atMost(3)},
		{name: "memory after a walk", measure: peakMemory, unit: mebibytes, target: below(64), alone: true},
	}},
	{name: "tar, cold", on: onSnapshot, cold: true, also: "fuse2fs", rows: []row{
		{name: "tar of 35,000 files, cold", measure: archive, target: atMost(1.9)},
	}},
	{name: "cat", on: onSnapshot, also: "fuse2fs", rows: []row{
		{name: "cat of 1 GiB, first", measure: catBig, target: speedAtLeast(0.95)},
	}},
	{name: "cat, cold", on: onSnapshot, cold: true, also: "fuse2fs", rows: []row{
		{name: "cat of 1 GiB, cold", measure: catBig, target: speedAtLeast(1)},
	}},
	{name: "random reads, one at a time", on: onSnapshot, also: "fuse2fs", rows: []row{
		{name: "random 4 KiB, depth 1", measure: randomReads(1), unit: microseconds, target: speedAtLeast(0.6)},
	}},
	{name: "random reads, 16 at a time", on: onSnapshot, also: "fuse2fs", rows: []row{
		{name: "random 4 KiB, depth 16", measure: randomReads(16), unit: microseconds, target: speedAtLeast(0.5)},
	}},
	{name: "raw of the disk", on: onSnapshot, also: storageDaemonProgram, rows: []row{
		{name: "raw of the disk / the image, first", measure: rawDisk, target: speedAtLeast(0.95)},
		{name: "raw of the disk / the image, again", measure: rawDisk, target: speedAtLeast(0.95)},
	}},
	{name: "raw of the partition", on: onSnapshot, rows: []row{
		{name: "raw of p1 / a loop device, first", measure: rawPart, target: speedAtLeast(0.65)},
		{name: "raw of p1 / a loop device, again", measure: rawPart, target: speedAtLeast(1)},
	}},
	{name: "start", on: onSnapshot, rows: []row{
		{name: "start to first guest byte", measure: firstByte, target: below(0.030)},
	}},
	{name: "qcow2", on: onQcow2, rows: []row{
		{name: "qcow2, first", measure: rawDisk, target: speedAtLeast(2)},
		{name: "qcow2, again", measure: rawDisk, target: speedAtLeast(2)},
	}},
	{name: "qcow2, cold", on: onQcow2, cold: true, rows: []row{
		{name: "qcow2, cold", measure: rawDisk, target: speedAtLeast(2)},
	}},
	{name: "qcow2, one at a time", on: onQcow2, rows: []row{
		{name: "qcow2, random 4 KiB, depth 1", measure: randomDisk(1), unit: microseconds, target: speedAtLeast(2)},
	}},
	{name: "qcow2, 16 at a time", on: onQcow2, rows: []row{
		{name: "qcow2, random 4 KiB, depth 16", measure: randomDisk(16), unit: microseconds, target: speedAtLeast(2)},
	}},
	{name: "compressed qcow2", on: onCompressed, rows: []row{
		{name: "compressed qcow2, first", measure: rawDisk, target: speedAtLeast(2)},
		{name: "compressed qcow2, again", measure: rawDisk, target: speedAtLeast(2)},
	}},
	{name: "compressed qcow2, cold", on: onCompressed, cold: true, rows: []row{
		{name: "compressed qcow2, cold", measure: rawDisk, target: speedAtLeast(2)},
	}},
	{name: "compressed qcow2, one at a time", on: onCompressed, rows: []row{
		{name: "compressed qcow2, random 4 KiB, depth 1", measure: randomDisk(1), unit: microseconds, target: speedAtLeast(2)},
	}},
	{name: "compressed qcow2, 16 at a time", on: onCompressed, rows: []row{
		{name: "compressed qcow2, random 4 KiB, depth 16", measure: randomDisk(16), unit: microseconds, target: speedAtLeast(2)},
	}},
}

func rowNames() []string {
	var names []string
	for _, s := range scenes {
		for _, r := range s.rows {
			names = append(names, r.name)
		}
	}
	return names
}
