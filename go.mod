module domfs

go 1.25

require (
	github.com/hanwen/go-fuse/v2 v2.12.0
	github.com/jessevdk/go-flags v1.6.1
	github.com/klauspost/compress v1.18.2
	go.uber.org/zap v1.28.0
	golang.org/x/sys v0.38.0
	golang.org/x/text v0.31.0
)

require (
	go.uber.org/multierr v1.10.0 // indirect
)
