package network

import (
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// What others change meanwhile does not wait for an attachment whose link takes no packets, nor does who gives it up.
func TestAttach_LinkTakesNoPackets_OthersGoOn(t *testing.T) {
	l := newLab(t)
	l.attach(t, "slow")
	link, err := netlink.LinkByName(linkName("slow"))
	must(t, err)
	must(t, netlink.LinkSetDown(link))
	done := make(chan error, 1)
	began := time.Now()
	go func() {
		_, err := l.Attach(t.Context(), Request{TaskID: "slow"})
		done <- err
	}()
	longest := time.Duration(0)
	for waits := true; waits; {
		at := time.Now()
		must(t, l.Apply(t.Context(), false, nil))
		longest = max(longest, time.Since(at))
		select {
		case err := <-done:
			must(t, err)
			waits = false
		case <-time.After(time.Millisecond):
		}
	}
	if took := time.Since(began); took < carrierWait || longest > carrierWait/2 {
		t.Errorf("the attachment waited for %v, others for up to %v", took, longest)
	}
}
