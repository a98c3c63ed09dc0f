package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// loadArg, as the first argument, makes this program send requests.
const loadArg = "load"

// runLoad sends requests of HTTP and wants small answers; it knows just enough of it to cost little itself.
func runLoad(args []string) error {
	f := flag.NewFlagSet(loadArg, flag.ContinueOnError)
	to := f.String("to", "", "address and port")
	from := f.String("from", "", "own address; empty = what the kernel takes")
	keep := f.Bool("keep", false, "keep connections")
	n := f.Int64("n", 1000, "requests")
	workers := f.Int("workers", 8, "connections at a time")
	if err := f.Parse(args); err != nil {
		return err
	}
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	if *from != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(*from)}
	}
	var left, failed atomic.Int64
	left.Store(*n)
	var all sync.WaitGroup
	var first error
	var once sync.Once
	for range *workers {
		all.Go(func() {
			c := caller{dialer: dialer, to: *to, keep: *keep}
			for left.Add(-1) >= 0 {
				if err := c.ask(); err != nil {
					failed.Add(1)
					once.Do(func() { first = err })
				}
			}
			c.close()
		})
	}
	all.Wait()
	if failed.Load() > 0 {
		return fmt.Errorf("%d of %d requests to %s failed, the first: %w", failed.Load(), *n, *to, first)
	}
	return nil
}

type caller struct {
	dialer *net.Dialer
	to     string
	keep   bool
	conn   net.Conn
	buf    [1024]byte
}

var (
	request = map[bool][]byte{
		true:  []byte("GET /tiny HTTP/1.1\r\nHost: x\r\n\r\n"),
		false: []byte("GET /tiny HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
	}
	endOfHead = []byte("\r\n\r\n")
	noContent = []byte("HTTP/1.1 204 ")
)

func (c *caller) ask() (err error) {
	if c.conn == nil {
		if c.conn, err = c.dialer.Dial("tcp", c.to); err != nil {
			return err
		}
	}
	defer func() {
		if err != nil || !c.keep {
			c.close()
		}
	}()
	if err := c.conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := c.conn.Write(request[c.keep]); err != nil {
		return err
	}
	for n := 0; ; {
		k, err := c.conn.Read(c.buf[n:])
		n += k
		if bytes.HasSuffix(c.buf[:n], endOfHead) {
			if !bytes.HasPrefix(c.buf[:n], noContent) {
				return fmt.Errorf("answered %q", c.buf[:min(n, 40)])
			}
			break
		}
		if err != nil {
			return err
		}
		if n == len(c.buf) {
			return errors.New("a long answer")
		}
	}
	if !c.keep { // the replica closes first, so that it and not the client keeps the port
		if _, err := c.conn.Read(c.buf[:]); !errors.Is(err, io.EOF) {
			return fmt.Errorf("the end of a connection: %w", err)
		}
	}
	return nil
}

func (c *caller) close() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}

// loadMain runs this program as a load when it was started as one.
func loadMain() {
	if len(os.Args) < 2 || os.Args[1] != loadArg {
		return
	}
	if err := runLoad(os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
	os.Exit(0)
}
