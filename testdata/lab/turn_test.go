package main

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"
)

func TestTurn_NoMoreLabsThanTheLimitRun(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	ctx := context.Background()
	first, err := takeTurn(ctx, 2)
	if err != nil {
		t.Fatal(err)
	}
	second, err := takeTurn(ctx, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	if third, err := takeTurn(short, 2); !errors.Is(err, context.DeadlineExceeded) {
		if third != nil {
			third.Close()
		}
		t.Errorf("a third beside two: %v", err)
	}
	done := make(chan error)
	go func() {
		third, err := takeTurn(ctx, 2)
		if err == nil {
			err = third.Close()
		}
		done <- err
	}()
	time.Sleep(100 * time.Millisecond)
	first.Close()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("a turn that came free is not taken")
	}
}

func TestTemp_FoldersOfDeadLabsGo(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	folder := func() (string, *os.File) {
		dir, lock, err := makeTemp()
		if err != nil {
			t.Fatal(err)
		}
		write(t, dir+"/payload", "x", 0o644)
		return dir, lock
	}
	dead, lock := folder()
	lock.Close()
	alive, lock := folder()
	defer lock.Close()
	young, lock := folder()
	lock.Close()
	then := time.Now().Add(-2 * tempAge)
	for _, dir := range []string{dead, alive} {
		if err := os.Chtimes(dir, then, then); err != nil {
			t.Fatal(err)
		}
	}
	_, lock = folder()
	defer lock.Close()
	for dir, want := range map[string]bool{dead: false, alive: true, young: true} {
		if _, err := os.Stat(dir); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", dir, err == nil, want)
		}
	}
}
