package network

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// resolvConf is the host's, without nameservers on its own loopback, which a container cannot reach.
func resolvConf(path string) (string, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
			if a, err := netip.ParseAddr(f[1]); err == nil && a.IsLoopback() {
				continue
			}
		}
		out.WriteString(line)
	}
	return out.String(), nil
}

func protocolName(p swarmpb.Protocol) string {
	switch p {
	case swarmpb.Protocol_PROTOCOL_UDP:
		return "udp"
	case swarmpb.Protocol_PROTOCOL_SCTP:
		return "sctp"
	}
	return "tcp"
}

// ownerOf names the process that has a port, as " by nginx (pid 12)"; empty when it cannot be found out.
func ownerOf(protocol swarmpb.Protocol, port uint16) string {
	inodes := map[string]bool{}
	for _, table := range []string{protocolName(protocol), protocolName(protocol) + "6"} {
		socketsAt(filepath.Join("/proc/thread-self/net", table), protocol, port, inodes)
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
		return fmt.Sprintf(" by %s (pid %s)", strings.TrimSpace(string(name)), pid)
	}
	return ""
}

// socketsAt collects the inodes of sockets bound to a port: listening ones for TCP, all for UDP.
func socketsAt(table string, protocol swarmpb.Protocol, port uint16, inodes map[string]bool) {
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
		if err != nil || uint16(n) != port || (protocol == swarmpb.Protocol_PROTOCOL_TCP && fields[3] != listening) {
			continue
		}
		inodes[fields[9]] = true
	}
}
