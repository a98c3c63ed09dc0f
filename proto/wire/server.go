package wire

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// ServerConfig is what a gRPC server is made of.
type ServerConfig struct {
	// Local: for the listener of ListenLocal; callers are CALLER_LOCAL. Else for (*Listener).GRPC.
	Local bool
	// Logger gets panics; nil: slog.Default.
	Logger *slog.Logger
}

// NewServer returns a gRPC server that checks every call against the method's access option, maps the errors
// of handlers with ToStatus, and survives their panics. Call CheckAccess once its services are registered.
func NewServer(cfg ServerConfig) *grpc.Server {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	var transport credentials.TransportCredentials = handshaken{}
	if cfg.Local {
		transport = localSocket{}
	}
	g := guard{logger: cfg.Logger}
	return grpc.NewServer(
		grpc.Creds(transport),
		grpc.UnaryInterceptor(g.unary),
		grpc.StreamInterceptor(g.stream),
		grpc.MaxRecvMsgSize(MaxRequestBytes),
		grpc.MaxConcurrentStreams(MaxStreams),
		grpc.MaxHeaderListSize(MaxHeaderBytes),
		grpc.ConnectionTimeout(HandshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: KeepaliveTime, Timeout: KeepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: KeepaliveTime / 2, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
	)
}

// guard stands before every handler.
type guard struct{ logger *slog.Logger }

func (g guard) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (_ any, err error) {
	defer g.finish(info.FullMethod, &err)
	if err := authorize(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return handle(ctx, req)
}

func (g guard) stream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	defer g.finish(info.FullMethod, &err)
	if err := authorize(s.Context(), info.FullMethod); err != nil {
		return err
	}
	if p, _ := Peer(s.Context()); p.Caller == swarmpb.Caller_CALLER_MANAGER {
		s = guardedStream{s, info.FullMethod}
	}
	return handle(srv, s)
}

// guardedStream judges a manager's stream anew with every message: it may be a manager no longer.
type guardedStream struct {
	grpc.ServerStream
	method string
}

func (s guardedStream) SendMsg(m any) error {
	if err := authorize(s.Context(), s.method); err != nil {
		return err
	}
	return s.ServerStream.SendMsg(m)
}

func (s guardedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return authorize(s.Context(), s.method)
}

// finish turns a panic into an error and an error into a status.
func (g guard) finish(method string, err *error) {
	if v := recover(); v != nil {
		g.logger.Error("handler panicked", "method", method, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		*err = Errorf(CodeInternal, "internal error in %s; the log of the swarmd that answered has the details", method)
	}
	*err = ToStatus(*err)
}

// ListenLocal opens the local socket with mode 0600 from its first moment. A socket left by a dead daemon is
// replaced; one that a live daemon answers on is an error with CodeInUse.
func ListenLocal(path string) (net.Listener, error) {
	probe, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		probe.Close()
		return nil, Errorf(CodeInUse, "socket %s: another swarmd answers on it; stop that one, or use another --run-dir", path)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("socket %s: %w; swarmd must run as root", path, err)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSocket == 0 {
		return nil, Errorf(CodeInvalid, "socket %s: there is a file of another kind; remove it, or use another --run-dir", path)
	}
	// Made in a directory that only we may enter, then moved into place.
	dir, err := os.MkdirTemp(filepath.Dir(path), ".s")
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	defer os.RemoveAll(dir)
	made := filepath.Join(dir, "s")
	inner, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	inner.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(made, 0o600), os.Rename(made, path)); err != nil {
		inner.Close()
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return &localListener{Listener: inner, path: path}, nil
}

// localListener removes its socket when it closes.
type localListener struct {
	net.Listener
	path string
}

func (l *localListener) Close() error {
	err := l.Listener.Close()
	if err == nil {
		err = os.Remove(l.path)
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	return err
}
