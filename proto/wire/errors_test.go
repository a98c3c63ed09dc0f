package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"pgregory.net/rapid"
)

func TestError_OverTheWireAndBack_KeepsCodeAndMessage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		code := rapid.SampledFrom(codeTable).Draw(t, "row").code
		message := rapid.StringN(1, 40, -1).Draw(t, "message")
		sent := Errorf(code, "%s", message)
		wrapped := fmt.Errorf("create service: %w", sent)
		got := FromStatus(ToStatus(wrapped))
		if CodeOf(got) != code || !errors.Is(got, &Error{Code: code}) {
			t.Fatalf("sent %v, got %v", code, CodeOf(got))
		}
		if want := strings.ToValidUTF8(wrapped.Error(), "\uFFFD"); got.Error() != want {
			t.Fatalf("sent %q, got %q", want, got.Error())
		}
		if again := FromStatus(got); again != got {
			t.Fatalf("the second mapping changed %v into %v", got, again)
		}
	})
}

func TestError_TableOfCodes_IsUnambiguous(t *testing.T) {
	reasons, seen := map[string]bool{}, map[Code]bool{}
	for _, row := range codeTable {
		if reasons[row.reason] || seen[row.code] || row.text == "" || row.grpc == codes.OK {
			t.Errorf("bad row %+v", row)
		}
		reasons[row.reason], seen[row.code] = true, true
	}
	for c := CodeInternal; c <= CodeUnimplemented; c++ {
		if !seen[c] {
			t.Errorf("code %d has no row", c)
		}
	}
}

func TestToStatus_AnyError_GetsACode(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want codes.Code
	}{
		{nil, codes.OK},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{fmt.Errorf("read: %w", context.Canceled), codes.Canceled},
		{errors.New("disk on fire"), codes.Internal},
		{status.Error(codes.NotFound, "gone"), codes.NotFound},
		{ErrInUse, codes.FailedPrecondition},
		{ErrNotLeader, codes.Unavailable},
		{fmt.Errorf("two: %w", errors.Join(io.EOF, Errorf(CodeExists, "taken"))), codes.AlreadyExists},
	} {
		if got := status.Code(ToStatus(tc.err)); got != tc.want {
			t.Errorf("%v: got %v, want %v", tc.err, got, tc.want)
		}
	}
}

func TestFromStatus_FailureOfTheTransport_SaysWhatToDo(t *testing.T) {
	for _, tc := range []struct {
		code    codes.Code
		message string
		want    Code
		text    string
	}{
		{codes.Unavailable, `connection error: desc = "transport: Error while dialing: cannot reach manager at 10.0.0.1:2377: connection refused; check it"`,
			CodeUnavailable, "cannot reach manager at 10.0.0.1:2377: connection refused; check it"},
		{codes.DeadlineExceeded, `context deadline exceeded while waiting for connections to become ready: last connection error: connection error: desc = "transport: Error while dialing: cannot reach x"`,
			CodeDeadline, "cannot reach x"},
		{codes.Unavailable, "error reading from server: remote error: tls: bad certificate", CodePermissionDenied, "removed from the cluster"},
		{codes.Unavailable, "error reading from server: EOF", CodeUnavailable, "try again"},
		{codes.Unimplemented, "unknown service swarm.v1.Control", CodeNotManager, "not a manager"},
		{codes.Unknown, "odd", CodeInternal, "odd"},
	} {
		got := FromStatus(status.Error(tc.code, tc.message))
		if CodeOf(got) != tc.want || !strings.Contains(got.Error(), tc.text) {
			t.Errorf("%s: got %v %q", tc.message, CodeOf(got), got)
		}
		if strings.Contains(got.Error(), "desc =") || strings.Contains(got.Error(), "rpc error") {
			t.Errorf("%q shows the library's wrapping", got)
		}
	}
	if FromStatus(nil) != nil || FromStatus(io.EOF) != io.EOF {
		t.Error("nil and io.EOF must pass as they are")
	}
	if err := FromStatus(status.FromContextError(context.DeadlineExceeded).Err()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v is not context.DeadlineExceeded any more", err)
	}
}

func TestErrorf_WithCause_KeepsIt(t *testing.T) {
	err := Errorf(CodeUnavailable, "ask leader: %w", io.ErrUnexpectedEOF)
	if !errors.Is(err, io.ErrUnexpectedEOF) || !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrNotFound) {
		t.Errorf("wrong tree of %v", err)
	}
	if CodeOf(nil) != 0 || CodeOf(io.EOF) != CodeInternal || CodeOf(fmt.Errorf("x: %w", err)) != CodeUnavailable {
		t.Error("wrong code")
	}
}

func TestCheckAddr_ManyForms_GiveHostPortOrAClearError(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.1": "10.0.0.1:2377", "10.0.0.1:99": "10.0.0.1:99", "node-1": "node-1:2377", "node-1.lan:1": "node-1.lan:1",
		"::1": "[::1]:2377", "[::1]": "[::1]:2377", "[fe80::1]:5": "[fe80::1]:5", "localhost:65535": "localhost:65535",
		"": "", ":2377": "", "10.0.0.1:": "", "10.0.0.1:0": "", "10.0.0.1:65536": "", "10.0.0.1:http": "", "10.0.0": "",
		"300.1.1.1:22": "", "a b": "", "http://10.0.0.1": "", "[::1": "", "::1]:2": "", "1:2:3": "", "10.0.0.1:+5": "",
	} {
		got, err := CheckAddr(in)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("CheckAddr(%q) = %q, %v; want %q", in, got, err, want)
		}
		if err != nil && (CodeOf(err) != CodeInvalid || !strings.Contains(err.Error(), "for example")) {
			t.Errorf("CheckAddr(%q): poor error %v", in, err)
		}
	}
}

func TestCheckAddr_ItsOwnAnswer_IsAccepted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := rapid.OneOf(rapid.String(), rapid.StringMatching(`[\[\]a-z0-9.:-]{0,20}`)).Draw(t, "in")
		got, err := CheckAddr(in)
		if err != nil {
			return
		}
		again, err := CheckAddr(got)
		if err != nil || again != got {
			t.Fatalf("%q gave %q, which gave %q, %v", in, got, again, err)
		}
	})
}
