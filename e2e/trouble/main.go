// Command trouble is a container's program for tests of what must be contained:
//
//	sleep     sleeps; ends with code 0 on SIGTERM and with 41 on SIGUSR1
//	deaf      sleeps and ignores SIGTERM
//	exit N    ends with code N
//	flood     writes lines to standard output, as fast as they are taken
//	hog       takes memory until it is killed
//	bomb      starts itself again and again, each of them too, until it cannot; then it ends with code 42
package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() {
	args := append(os.Args[1:], "")
	switch args[0] {
	case "sleep":
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGTERM, syscall.SIGUSR1)
		if <-signals == syscall.SIGUSR1 {
			os.Exit(41)
		}
	case "deaf":
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("deaf")
		time.Sleep(24 * time.Hour)
	case "exit":
		code, err := strconv.Atoi(args[1])
		if err != nil {
			fmt.Fprintln(os.Stderr, "exit:", err)
			os.Exit(2)
		}
		os.Exit(code)
	case "flood":
		line := bytes.Repeat([]byte("all work and no play makes a full disk "), 3)
		line[len(line)-1] = '\n'
		for lines := bytes.Repeat(line, 64); ; {
			if _, err := os.Stdout.Write(lines); err != nil {
				os.Exit(2)
			}
		}
	case "hog":
		for held := [][]byte{}; ; {
			held = append(held, make([]byte, 1<<20))
			for i := 0; i < 1<<20; i += 4096 {
				held[len(held)-1][i] = 1
			}
		}
	case "bomb":
		bomb()
	default:
		fmt.Fprintf(os.Stderr, "trouble: no such command %q\n", args[0])
		os.Exit(2)
	}
}

// bomb ends only as the container's first process, with whose end the kernel kills the others.
func bomb() {
	for {
		cmd := exec.Command("/proc/self/exe", "bomb")
		if err := cmd.Start(); err != nil && os.Getpid() == 1 {
			fmt.Println("bomb:", err)
			os.Exit(42)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
