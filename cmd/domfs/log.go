package main

import (
	"fmt"
	"io"
	"log/syslog"
	"os"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// logOptions say where the log goes and how it looks.
type logOptions struct {
	file   string // appended to; "" for standard error
	json   bool
	debug  bool
	daemon bool // there is no standard error: without a file, the system's log
}

// newLog makes the log; close writes out what it holds.
func newLog(o logOptions) (log *zap.Logger, close func(), err error) {
	level := zapcore.InfoLevel
	if o.debug {
		level = zapcore.DebugLevel
	}
	if o.daemon && o.file == "" {
		w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_INFO, "domfs")
		if err != nil {
			return zap.NewNop(), func() {}, nil // a machine without a system log
		}
		core := &syslogCore{LevelEnabler: level, encoder: newEncoder(o.json, false, true), w: w}
		return zap.New(core), func() { w.Close() }, nil
	}
	var out io.WriteCloser = os.Stderr
	colour := isTerminal(os.Stderr)
	if o.file != "" {
		f, err := os.OpenFile(o.file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
		if err != nil {
			return nil, nil, fmt.Errorf("--log-file: %w", err)
		}
		out, colour = f, false
	}
	core := zapcore.NewCore(newEncoder(o.json, colour, false), zapcore.Lock(zapcore.AddSync(out)), level)
	return zap.New(core), func() {
		if o.file != "" {
			out.Close()
		}
	}, nil
}

// newEncoder makes lines for people, or one JSON object a line. The system's log adds
// the time itself.
func newEncoder(asJSON, colour, noTime bool) zapcore.Encoder {
	c := zap.NewProductionEncoderConfig()
	c.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	c.EncodeDuration = zapcore.SecondsDurationEncoder
	if noTime {
		c.TimeKey = zapcore.OmitKey
	}
	if asJSON {
		return zapcore.NewJSONEncoder(c)
	}
	c.EncodeTime = zapcore.TimeEncoderOfLayout("2006-01-02T15:04:05.000Z07:00")
	c.EncodeLevel = zapcore.CapitalLevelEncoder
	if colour {
		c.EncodeLevel = zapcore.CapitalColorLevelEncoder
	}
	c.EncodeDuration = zapcore.StringDurationEncoder
	return zapcore.NewConsoleEncoder(c)
}

// syslogCore writes entries to the system's log with a severity of their level.
type syslogCore struct {
	zapcore.LevelEnabler
	encoder zapcore.Encoder
	w       *syslog.Writer
}

func (c *syslogCore) With(fields []zapcore.Field) zapcore.Core {
	with := *c
	with.encoder = c.encoder.Clone()
	for _, f := range fields {
		f.AddTo(with.encoder)
	}
	return &with
}

func (c *syslogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *syslogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	b, err := c.encoder.EncodeEntry(e, fields)
	if err != nil {
		return err
	}
	defer b.Free()
	switch e.Level {
	case zapcore.DebugLevel:
		return c.w.Debug(b.String())
	case zapcore.InfoLevel:
		return c.w.Info(b.String())
	case zapcore.WarnLevel:
		return c.w.Warning(b.String())
	}
	return c.w.Err(b.String())
}

func (c *syslogCore) Sync() error { return nil }
