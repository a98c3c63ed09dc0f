package ingress

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A reset that this host sends in the place of a task that is gone goes back over the fabric as the task's replies would, or the
// client, who never heard of the task's address, drops it. The network's policy rules pass over what the host itself sends, as other
// software marks that; a reset is told apart by its source, an address of the block that the host does not have, and led to the
// rule of replies.
func (i *Ingress) resetRule(f family) *netlink.Rule {
	from := i.layout.own(f)
	r := netlink.NewRule()
	r.Priority, r.IifName, r.Goto, r.Protocol = i.resetPriority(), "lo", i.cfg.ReplyRule, resetProtocol
	r.Family = unix.AF_INET
	if f.proto == unix.NFPROTO_IPV6 {
		r.Family = unix.AF_INET6
	}
	r.Src = &net.IPNet{IP: from.Addr().AsSlice(), Mask: net.CIDRMask(from.Bits(), from.Addr().BitLen())}
	return r
}

// resetProtocol marks the rule as ours.
const resetProtocol = 0x5e

func (i *Ingress) resetPriority() int { return i.cfg.ReplyRule - 2 }

// ensureResets makes the rules that are missing and removes former ones.
func (i *Ingress) ensureResets() error {
	if i.cfg.ReplyRule == 0 {
		return nil
	}
	for _, f := range i.layout.usedFamilies() {
		want := i.resetRule(f)
		found, err := removeResets(want.Family, want)
		if err != nil {
			return err
		}
		if found {
			continue
		}
		if err := netlink.RuleAdd(want); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add the policy rule of resets: %w", err)
		}
	}
	return nil
}

// removeResets removes our rules of the family but the one to keep, and tells whether that is there.
func removeResets(familyID int, keep *netlink.Rule) (bool, error) {
	rules, err := netlink.RuleList(familyID)
	if err != nil {
		return false, fmt.Errorf("list policy rules: %w", err)
	}
	found := false
	for _, r := range rules {
		if r.Protocol != resetProtocol {
			continue
		}
		if keep != nil && !found && r.Priority == keep.Priority && r.IifName == keep.IifName && r.Goto == keep.Goto &&
			r.Src != nil && r.Src.String() == keep.Src.String() {
			found = true
			continue
		}
		r.Family = familyID
		if err := netlink.RuleDel(&r); err != nil && !errors.Is(err, unix.ENOENT) {
			return false, fmt.Errorf("remove the policy rule of resets: %w", err)
		}
	}
	return found, nil
}

func removeAllResets() error {
	_, err4 := removeResets(unix.AF_INET, nil)
	_, err6 := removeResets(unix.AF_INET6, nil)
	if errors.Is(err6, unix.EAFNOSUPPORT) || errors.Is(err6, unix.EOPNOTSUPP) {
		err6 = nil // no IPv6 here
	}
	return errors.Join(err4, err6)
}
