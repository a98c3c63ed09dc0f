package network

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestKernelLacksSomething_StatusSaysWhat(t *testing.T) {
	l := newLab(t)
	for i, a := range l.attempts {
		if strings.Contains(a.name, "jhash") || strings.Contains(a.name, "conntrack netlink") {
			l.attempts[i].try = func() error { return unix.EOPNOTSUPP }
		}
	}
	must(t, l.Check(t.Context()))
	told := strings.Join(l.Status().GetProblems(), "\n")
	for _, want := range []string{"affinity=client-ip", "CONFIG_NFT_HASH", "CONFIG_NF_CT_NETLINK"} {
		if !strings.Contains(told, want) {
			t.Errorf("%s is not said in %q", want, told)
		}
	}
	for _, a := range attempts() {
		if strings.Contains(a.name, "conntrack netlink") {
			if err := apart(a.try); err != nil {
				t.Errorf("%s: %v", a.name, err)
			}
		}
	}
}
