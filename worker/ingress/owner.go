package ingress

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ownerOf names the process that has a port, as "nginx (pid 12)"; empty when it cannot be found out.
func ownerOf(k portKey) string {
	inodes := map[string]bool{}
	for _, table := range []string{protocolName(k.protocol), protocolName(k.protocol) + "6"} {
		socketsAt(filepath.Join("/proc/thread-self/net", table), k, inodes)
	}
	if len(inodes) == 0 {
		return ""
	}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil || !strings.HasPrefix(target, "socket:[") || !inodes[strings.Trim(target, "socket:[]")] {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		name, _ := os.ReadFile(filepath.Join("/proc", pid, "comm"))
		return fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(name)), pid)
	}
	return ""
}

// socketsAt collects the inodes of sockets bound to a port: listening ones for TCP, all for UDP.
func socketsAt(table string, k portKey, inodes map[string]bool) {
	f, err := os.Open(table)
	if err != nil {
		return
	}
	defer f.Close()
	const listening = "0A"
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 10 {
			continue
		}
		_, hex, _ := strings.Cut(fields[1], ":")
		n, err := strconv.ParseUint(hex, 16, 16)
		if err != nil || uint16(n) != k.port || (k.protocol == unix.IPPROTO_TCP && fields[3] != listening) {
			continue
		}
		inodes[fields[9]] = true
	}
}
