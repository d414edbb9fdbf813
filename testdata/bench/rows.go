package main

import "regexp"

// scene is a fresh mount, and the rows that are measured on it one after another.
type scene struct {
	name    string
	cold    bool // the image is out of the host's page cache at its beginning
	fuse2fs bool // fuse2fs plays the first row once, if it is installed
	rows    []row
}

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
	{name: "find", fuse2fs: true, rows: []row{
		{name: "find, first", measure: find, target: atMost(4)},
		{name: "find, again", measure: find, target: atMost(2.2)},
	}},
	{name: "ls -lR", rows: []row{
		{name: "ls -lR, first", measure: listLong, target: atMost(1.6)},
		{name: "ls -lR, again", measure: listLong, target: atMost(1.6)},
	}},
	{name: "du", rows: []row{
		{name: "du, first", measure: diskUsage, target: atMost(1.5)},
		{name: "du, again", measure: diskUsage, target: atMost(1.7)},
	}},
	{name: "tar", fuse2fs: true, rows: []row{
		{name: "tar of 35,000 files, first", measure: archive, target: atMost(1.6)},
		{name: "tar of 35,000 files, again", measure: archive, target: atMost(3)},
		{name: "memory after a walk", measure: peakMemory, unit: mebibytes, target: below(64), alone: true},
	}},
	{name: "tar, cold", cold: true, rows: []row{
		{name: "tar of 35,000 files, cold", measure: archive, target: atMost(1.9)},
	}},
	{name: "cat", fuse2fs: true, rows: []row{
		{name: "cat of 1 GiB, first", measure: catBig, target: speedAtLeast(0.95)},
	}},
	{name: "cat, cold", cold: true, rows: []row{
		{name: "cat of 1 GiB, cold", measure: catBig, target: speedAtLeast(1)},
	}},
	{name: "random reads, one at a time", rows: []row{
		{name: "random 4 KiB, depth 1", measure: randomReads(1), unit: microseconds, target: speedAtLeast(0.6)},
	}},
	{name: "random reads, 16 at a time", rows: []row{
		{name: "random 4 KiB, depth 16", measure: randomReads(16), unit: microseconds, target: speedAtLeast(0.5)},
	}},
	{name: "raw of the disk", rows: []row{
		{name: "raw of the disk / the image, first", measure: rawDisk, target: speedAtLeast(0.95)},
		{name: "raw of the disk / the image, again", measure: rawDisk, target: speedAtLeast(0.95)},
	}},
	{name: "raw of the partition", rows: []row{
		{name: "raw of p1 / a loop device, first", measure: rawPart, target: speedAtLeast(0.65)},
		{name: "raw of p1 / a loop device, again", measure: rawPart, target: speedAtLeast(1)},
	}},
	{name: "start", rows: []row{
		{name: "start to first guest byte", measure: firstByte, target: below(0.030)},
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
