module domfs

go 1.25

require go.uber.org/zap v1.28.0

require (
	github.com/hanwen/go-fuse/v2 v2.12.0 // indirect
	github.com/jessevdk/go-flags v1.6.1 // indirect
	go.uber.org/multierr v1.10.0 // indirect
	golang.org/x/sys v0.38.0 // indirect
)
