package main

import (
	"bytes"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"
)

// hang never ends by itself.
func hang() {
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	for {
		time.Sleep(time.Hour)
	}
}

// flood writes as much as anybody reads.
func flood() {
	line := bytes.Repeat([]byte("all work and no play makes Jack a dull boy\n"), 1<<10)
	for {
		if _, err := os.Stdout.Write(line); err != nil {
			return
		}
	}
}

// leak leaves a process that holds on to the output.
func leak() error {
	left := exec.Command("/proc/self/exe", "hang")
	left.Stdout, left.Stderr = os.Stdout, os.Stderr
	left.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return left.Start()
}
