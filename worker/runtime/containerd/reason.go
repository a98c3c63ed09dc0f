package containerd

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/swarmd/swarmd/worker/runtime"
)

const (
	// atOnce is how soon after its start a container ends whose program the kernel does not take.
	atOnce = 2 * time.Second
	// reasonPatience is how long an empty log may be behind the end of its container.
	reasonPatience = 300 * time.Millisecond
	// reasonTail is how much of the log's end is read.
	reasonTail = 4 << 10
)

// refusedExec is what the OCI runtime writes, in the container's place, when the kernel does not take the program.
var refusedExec = regexp.MustCompile(`^exec (/[^ ]*): (exec format error|permission denied|no such file or directory|argument list too long)$`)

// reasonOf says why a container ended that never came to run its program: the OCI runtime learns that only after the start, and
// says so in the container's log. Empty for any other end. A program may write the same and end at once: then it is
// told what it wrote.
func (r *Runtime) reasonOf(id string, exit runtime.Exit, started time.Time) string {
	if exit.Unknown || exit.Code != 1 && exit.Code != 126 && exit.Code != 127 && exit.Code != 255 || exit.At.Sub(started) > atOnce {
		return ""
	}
	line := ""
	for until := time.Now().Add(reasonPatience); ; {
		line = lastLine(filepath.Join(r.LogDir(id), "current.log"))
		if line != "" || time.Now().After(until) || !sleep(r.ctx, retryFirst) {
			break
		}
	}
	found := refusedExec.FindStringSubmatch(line)
	if found == nil {
		return ""
	}
	if found[2] == "exec format error" {
		return found[1] + ": exec format error: it is built for another architecture, or is a script without its #! line"
	}
	return "executable " + found[1] + ": " + found[2]
}

// lastLine is the text of a log's last line, without its time, stream and tag.
func lastLine(file string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	if end, err := f.Seek(0, io.SeekEnd); err != nil || end > reasonTail {
		if _, err := f.Seek(-reasonTail, io.SeekEnd); err != nil {
			return ""
		}
	} else if _, err := f.Seek(0, io.SeekStart); err != nil {
		return ""
	}
	body, err := io.ReadAll(io.LimitReader(f, reasonTail))
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimRight(string(body), "\n"), "\n")
	fields := strings.SplitN(lines[len(lines)-1], " ", 4)
	if len(fields) < 4 {
		return ""
	}
	return fields[3]
}
