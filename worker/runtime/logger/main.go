// Command logger keeps what a container writes. The shim starts one beside each container (a containerd
// `binary://` logger), so it serves while swarmd and containerd are down; with `init` as its first argument it
// is the container's first process instead (see init.go), and under the name crun it runs that where it cannot work
// by itself (see hybrid.go).
//
// It promises lines of the form
//
//	2026-01-02T15:04:05.000000000Z stdout F text
//
// in DIR/current.log, F for a full line and P for a part of one longer than 16 KiB; files rotated by size
// (current.log.1 is the youngest old one) and bounded in number; and that it never stops reading: what cannot
// be written, on a full disk for example, is dropped and counted in a line of its own. It alone writes DIR.
//
// The program is small on purpose: one such process lives per container.
package main

import (
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"
)

//go:generate go run ./generate

// The file descriptors that the shim hands over.
const (
	stdoutFD = 3
	stderrFD = 4
	readyFD  = 5
)

func main() {
	if isHybrid(os.Args[0]) {
		os.Exit(runHybrid(os.Args))
	}
	if len(os.Args) > 1 && os.Args[1] == "init" {
		os.Exit(runInit(os.Args[2:]))
	}
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(20)
	// The shim asks by SIGTERM right after it has closed its ends of the pipes: the end of both streams is what ends us.
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	if err := runLogger(options(os.Args[1:])); err != nil {
		os.Stderr.WriteString("logger: " + err.Error() + "\n")
		os.Exit(1)
	}
}

// options reads the query of the URI, which the shim passes as key and value in any order: dir, size (bytes a
// file), files (how many to keep, the current one included).
func options(args []string) settings {
	o := settings{size: 10 << 20, files: 3}
	for i := 0; i+1 < len(args); i += 2 {
		switch n, err := strconv.ParseInt(args[i+1], 10, 64); {
		case args[i] == "dir":
			o.dir = args[i+1]
		case args[i] == "size" && err == nil && n >= 1<<10:
			o.size = n
		case args[i] == "files" && err == nil && n >= 1 && n <= 1000:
			o.files = int(n)
		}
	}
	return o
}

type settings struct {
	dir   string
	size  int64
	files int
}

func runLogger(o settings) error {
	out, err := openOutput(o)
	if err != nil {
		return err
	}
	sources := []source{{fd: stdoutFD, lines: newLines(out, "stdout")}, {fd: stderrFD, lines: newLines(out, "stderr")}}
	syscall.Close(readyFD) // the container may start
	return pump(sources, out)
}

// source is one stream of the container.
type source struct {
	fd    int
	lines *lines
}

// Where the container writes again within busy of the last turn, the next is put off by gather: a wake-up for each line
// costs far more than the line. A pipe holds more than comes meanwhile at 300 MB/s, and a line by itself never waits.
const (
	busy   = time.Millisecond
	gather = 100 * time.Microsecond
)

// pump copies until every source has ended. One thread serves both, so lines never mix and nothing is locked.
func pump(sources []source, out *output) error {
	poll, err := register(sources)
	if err != nil {
		return err
	}
	defer syscall.Close(poll)
	buffer := make([]byte, 32<<10)
	events := make([]syscall.EpollEvent, len(sources))
	var before time.Time
	for open := len(sources); open > 0; {
		n, err := syscall.EpollWait(poll, events, -1)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		now, behind := time.Now(), false
		for _, event := range events[:n] {
			s := sources[event.Fd]
			got, ended := s.read(buffer)
			behind = behind || got >= len(buffer)
			if !ended {
				continue
			}
			s.lines.end()
			syscall.EpollCtl(poll, syscall.EPOLL_CTL_DEL, s.fd, nil)
			syscall.Close(s.fd)
			open--
		}
		out.flush()
		if !behind && open > 0 && now.Sub(before) < busy {
			pause := syscall.NsecToTimespec(int64(gather))
			syscall.Nanosleep(&pause, nil)
		}
		before = now
	}
	return out.close()
}

// register gives an epoll that reports the sources by their index.
func register(sources []source) (int, error) {
	poll, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return -1, err
	}
	for i, s := range sources {
		err := syscall.SetNonblock(s.fd, true)
		if err == nil {
			err = syscall.EpollCtl(poll, syscall.EPOLL_CTL_ADD, s.fd, &syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(i)})
		}
		if err != nil {
			syscall.Close(poll)
			return -1, err
		}
	}
	return poll, nil
}

// read takes what is there, at most four buffers so that the other stream gets its turn, and says how much that was and
// whether the stream has ended.
func (s source) read(buffer []byte) (got int, ended bool) {
	for range 4 {
		n, err := syscall.Read(s.fd, buffer)
		switch {
		case err == syscall.EINTR:
		case err == syscall.EAGAIN:
			return got, false
		case err != nil || n == 0:
			return got, true
		default:
			got += n
			s.lines.write(buffer[:n])
			if n < len(buffer) {
				return got, false
			}
		}
	}
	return got, false
}
