package main

import (
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
)

// runInit is the first process of a container that asked for one: it starts the command, passes every signal
// on, reaps what is left behind and ends with the command's code, 128 + signal when one killed it.
func runInit(argv []string) int {
	runtime.GOMAXPROCS(1)
	if len(argv) == 0 {
		return initFailed("no command", 127)
	}
	signals, ended := make(chan os.Signal, 64), make(chan os.Signal, 1)
	signal.Notify(signals)
	signal.Notify(ended, syscall.SIGCHLD) // of its own: one more never matters, and none is ever lost
	path, err := lookPath(argv[0], os.Getenv("PATH"))
	if err != nil {
		return initFailed(argv[0]+": "+err.Error(), 127)
	}
	wd, err := os.Getwd()
	if err != nil {
		return initFailed(err.Error(), 126)
	}
	child, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{Dir: wd, Env: os.Environ(), Files: []uintptr{0, 1, 2}})
	if err != nil {
		return initFailed(path+": "+err.Error(), 126)
	}
	for {
		select {
		case <-ended:
			if code, ended := reap(child); ended {
				return code
			}
		case s := <-signals:
			// SIGURG is the Go runtime's own, to preempt.
			if s != syscall.SIGCHLD && s != syscall.SIGURG {
				syscall.Kill(child, s.(syscall.Signal))
			}
		}
	}
}

func reap(child int) (code int, ended bool) {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil || pid <= 0:
			return code, ended
		case pid == child && status.Signaled():
			code, ended = 128+int(status.Signal()), true
		case pid == child && status.Exited():
			code, ended = status.ExitStatus(), true
		}
	}
}

// lookPath finds the command as execvp does.
func lookPath(name, path string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for dir := range strings.SplitSeq(path, ":") {
		if dir == "" {
			dir = "."
		}
		file := dir + "/" + name
		if info, err := os.Stat(file); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			return file, nil
		}
	}
	return "", syscall.ENOENT
}

func initFailed(why string, code int) int {
	os.Stderr.WriteString("init: " + why + "\n")
	return code
}
