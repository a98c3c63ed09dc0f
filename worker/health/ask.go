package health

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
)

const (
	// maxHeader bounds what is read of an answer beside its body, and maxMessage what a gRPC server may answer.
	maxHeader  = 64 << 10
	maxMessage = 64 << 10
	agent      = "swarmd-health"
)

// Ask makes one probe. An error is a fault of this host, and no answer.
func (p *Prober) Ask(ctx context.Context, taskID string, c *Check) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	var a Answer
	var err error
	switch kind := c.Probe.GetKind().(type) {
	case *swarmpb.Probe_Exec:
		a, err = p.exec(ctx, taskID, c, kind.Exec)
	case *swarmpb.Probe_Http:
		a, err = p.http(ctx, taskID, kind.Http)
	case *swarmpb.Probe_Tcp:
		var conn net.Conn
		if conn, err = p.cfg.Dial(ctx, taskID, uint16(kind.Tcp.GetPort())); err == nil {
			_ = conn.Close()
			a = Answer{OK: true, Text: "connected"}
		}
	case *swarmpb.Probe_Grpc:
		a, err = p.grpc(ctx, taskID, kind.Grpc)
	default:
		return Answer{}, fmt.Errorf("a probe of a kind that this version does not know: %T", kind)
	}
	if err != nil && ctx.Err() != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return late(c, a.Text), nil
	}
	if err != nil && isRefusal(err) {
		return Answer{Text: err.Error()}, nil
	}
	return a, err
}

// late is the answer that did not come in time.
func late(c *Check, said string) Answer {
	text := fmt.Sprintf("no answer within %s", c.Timeout)
	if said != "" {
		text += ": " + said
	}
	return Answer{Text: text}
}

// isRefusal tells an error of connecting that is the task's from one of this host.
func isRefusal(err error) bool {
	for _, no := range []error{unix.ECONNREFUSED, unix.ECONNRESET, unix.ETIMEDOUT, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EPIPE} {
		if errors.Is(err, no) {
			return true
		}
	}
	return false
}

func (p *Prober) exec(ctx context.Context, taskID string, c *Check, e *swarmpb.ExecProbe) (Answer, error) {
	args := e.GetCommand()
	if e.GetShell() {
		args = []string{"/bin/sh", "-c", strings.Join(args, " ")}
	}
	result, err := p.cfg.Exec(ctx, taskID, runtime.ExecSpec{Args: args, Limit: MaxOutput})
	said := string(result.Output)
	if errors.Is(err, runtime.ErrInvalid) {
		why := err
		if of := (*runtime.ContainerError)(nil); errors.As(err, &of) {
			why = of.Err
		}
		return Answer{Text: why.Error()}, nil
	}
	if err != nil {
		return Answer{Text: said}, err
	}
	if result.Code != 0 {
		return Answer{Text: fmt.Sprintf("exit code %d: %s", result.Code, said)}, nil
	}
	return Answer{OK: true, Text: said}, nil
}

// http speaks HTTP/1.1 over a connection of its own: nothing of it outlives the probe.
func (p *Prober) http(ctx context.Context, taskID string, h *swarmpb.HTTPProbe) (Answer, error) {
	conn, err := p.cfg.Dial(ctx, taskID, uint16(h.GetPort()))
	if err != nil {
		return Answer{}, err
	}
	bare := conn // a close of what is secure may wait for the peer
	defer bare.Close()
	defer context.AfterFunc(ctx, func() { _ = bare.Close() })()
	host := h.GetHost()
	if host == "" {
		host = "localhost"
	}
	if h.GetHttps() {
		name, _, err := net.SplitHostPort(host)
		if err != nil {
			name = host
		}
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true, ServerName: name, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12})
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+pathOf(h), nil)
	if err != nil {
		return Answer{Text: err.Error()}, nil
	}
	request.Header.Set("User-Agent", agent)
	request.Close = true
	if err := request.Write(conn); err != nil {
		return faulty(ctx, err)
	}
	limited := &io.LimitedReader{R: conn, N: maxHeader}
	reader := bufio.NewReader(limited)
	response, err := http.ReadResponse(reader, request)
	for err == nil && response.StatusCode < http.StatusOK && response.StatusCode != http.StatusSwitchingProtocols {
		response, err = http.ReadResponse(reader, request) // that one came before the answer
	}
	if err != nil {
		return faulty(ctx, err)
	}
	defer response.Body.Close()
	limited.N = MaxOutput
	body, _ := io.ReadAll(io.LimitReader(response.Body, MaxOutput)) // what came of it will do
	a := Answer{OK: response.StatusCode >= http.StatusOK && response.StatusCode < http.StatusBadRequest, Text: response.Status}
	if text := strings.TrimSpace(string(body)); text != "" {
		a.Text += ": " + text
	}
	return a, nil
}

// faulty is the answer of one that was connected to and then did not keep to its protocol.
func faulty(ctx context.Context, err error) (Answer, error) {
	if ctx.Err() != nil {
		return Answer{}, ctx.Err()
	}
	return Answer{Text: err.Error()}, nil
}

func (p *Prober) grpc(ctx context.Context, taskID string, g *swarmpb.GRPCProbe) (Answer, error) {
	secure := insecure.NewCredentials()
	if g.GetTls() {
		secure = credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12})
	}
	var host atomic.Pointer[error] // of connecting, when it is not the task's
	client, err := grpc.NewClient("passthrough:///localhost", grpc.WithTransportCredentials(secure), grpc.WithUserAgent(agent), grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)), grpc.WithMaxHeaderListSize(maxHeader),
		grpc.WithContextDialer(func(dial context.Context, _ string) (net.Conn, error) {
			conn, err := p.cfg.Dial(dial, taskID, uint16(g.GetPort()))
			if err != nil && !isRefusal(err) && dial.Err() == nil {
				host.Store(&err)
			}
			return conn, err
		}))
	if err != nil {
		return Answer{}, err
	}
	answer, err := grpc_health_v1.NewHealthClient(client).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: g.GetService()})
	_ = client.Close() // the dialer may return later
	switch {
	case err == nil:
		return Answer{OK: answer.GetStatus() == grpc_health_v1.HealthCheckResponse_SERVING, Text: answer.GetStatus().String()}, nil
	case ctx.Err() != nil:
		return Answer{}, ctx.Err()
	case host.Load() != nil && status.Code(err) == codes.Unavailable:
		return Answer{}, *host.Load()
	}
	return Answer{Text: fmt.Sprintf("%s: %s", status.Code(err), status.Convert(err).Message())}, nil
}
