package network

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A namespace begins with the settings of a host that forwards, and that may route loopback for other software.
func TestTask_HostForwards_TaskDoesNot(t *testing.T) {
	ns := filepath.Join(t.TempDir(), "task")
	var left []string
	must(t, makeNamespace(ns, func() error {
		inherited := []string{"net/ipv4/conf/all/forwarding", "net/ipv4/conf/default/forwarding", "net/ipv4/conf/all/route_localnet", "net/ipv4/conf/default/route_localnet"}
		for _, setting := range inherited {
			must(t, setSysctl(setting, "1"))
		}
		must(t, quietContainer())
		for _, setting := range append(inherited, "net/ipv4/ip_forward") {
			if now, err := os.ReadFile(filepath.Join("/proc/sys", setting)); err != nil || strings.TrimSpace(string(now)) != "0" {
				left = append(left, setting)
			}
		}
		return nil
	}))
	must(t, removeNamespace(ns))
	if len(left) > 0 {
		t.Errorf("%q stay as the host has them: a task in two networks joins them", left)
	}
}
