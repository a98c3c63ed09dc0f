package containerd

import (
	"context"
	"io"
	"math"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/continuity/fs"
	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// lookupUser resolves user[:group], names or numbers, against the image's /etc/passwd and /etc/group, as
// Docker does: without a group, the user's own and those that list it. Empty = root.
func lookupUser(ctx context.Context, name string, root rootfs) (specs.User, error) {
	var found *user.ExecUser
	err := root(ctx, func(mounted string) error {
		passwd, err := openInside(mounted, "/etc/passwd")
		if err != nil {
			return err
		}
		defer passwd.Close()
		group, err := openInside(mounted, "/etc/group")
		if err != nil {
			return err
		}
		defer group.Close()
		found, err = user.GetExecUser(name, &user.ExecUser{Home: "/"}, passwd, group)
		if err != nil {
			return invalid("user %q: %s", name, strings.TrimPrefix(err.Error(), "unable to find "))
		}
		return nil
	})
	if err != nil {
		return specs.User{}, err
	}
	return toUser(found, name)
}

func toUser(found *user.ExecUser, name string) (specs.User, error) {
	out := specs.User{UID: uint32(found.Uid), GID: uint32(found.Gid), AdditionalGids: []uint32{uint32(found.Gid)}}
	for _, id := range append([]int{found.Uid, found.Gid}, found.Sgids...) {
		if id < 0 || id > math.MaxInt32 {
			return specs.User{}, invalid("user %q: ID %d is out of range", name, id)
		}
	}
	for _, id := range found.Sgids {
		if id != found.Gid {
			out.AdditionalGids = append(out.AdditionalGids, uint32(id))
		}
	}
	return out, nil
}

// maxUserFile bounds what is read of an image's file.
const maxUserFile = 8 << 20

// openInside opens a file of the image; a missing one reads as empty. The image may hold anything under the name.
func openInside(root, name string) (io.ReadCloser, error) {
	path, err := fs.RootPath(root, name)
	if err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if os.IsNotExist(err) {
		return io.NopCloser(strings.NewReader("")), nil
	}
	if err != nil {
		return nil, err
	}
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		file.Close()
		return nil, invalid("%s of the image is no regular file", name)
	}
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(file, maxUserFile), file}, nil
}

// numericUser knows uid:gid, which needs no look into the image.
func numericUser(name string) (specs.User, bool) {
	u, g, ok := strings.Cut(name, ":")
	if !ok {
		return specs.User{}, false
	}
	uid, err := strconv.ParseUint(u, 10, 31)
	if err != nil {
		return specs.User{}, false
	}
	gid, err := strconv.ParseUint(g, 10, 31)
	if err != nil {
		return specs.User{}, false
	}
	return specs.User{UID: uint32(uid), GID: uint32(gid), AdditionalGids: []uint32{uint32(gid)}}, true
}
