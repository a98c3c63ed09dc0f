package lab

import (
	"bytes"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Capture sees all packets that go through the switch, until it is closed.
type Capture struct {
	fd   int
	done chan struct{}
	once sync.Once
	stop func()

	packets, found int
}

// captureWait is how often, in microseconds, a capture looks whether it is closed.
const captureWait = 100_000

// Capture looks for words in every packet on the switch from now on.
func (l *Lab) Capture(words []byte) (*Capture, error) {
	c := &Capture{done: make(chan struct{})}
	err := l.inSwitch(func() (err error) {
		all := int(htons(unix.ETH_P_ALL))
		if c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			return fmt.Errorf("capture: %w", err)
		}
		return unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: captureWait})
	})
	if err != nil {
		return nil, err
	}
	closing := make(chan struct{})
	go func() {
		defer close(c.done)
		buf := make([]byte, 1<<16)
		for {
			n, _, err := unix.Recvfrom(c.fd, buf, 0)
			if n > 0 && err == nil {
				if c.packets++; bytes.Contains(buf[:n], words) {
					c.found++
				}
				continue
			}
			select {
			case <-closing:
				return
			default:
			}
		}
	}()
	c.stop = func() { close(closing) }
	return c, nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// Close ends it, once nothing more is on its way, and says how many packets there were and in how many the words were found.
func (c *Capture) Close() (packets, found int) {
	c.once.Do(func() {
		c.stop()
		<-c.done
		_ = unix.Close(c.fd)
	})
	return c.packets, c.found
}
