package wire

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Code is the kind of an Error: what a caller may branch on.
type Code int

// Codes. The zero Code is not used.
const (
	CodeInternal Code = iota + 1
	CodeInvalid
	CodeNotFound
	CodeExists
	CodeConflict
	CodeInUse
	CodeFailedPrecondition
	CodeUnavailable
	CodeNotLeader
	CodeNotManager
	CodePermissionDenied
	CodeUnauthenticated
	CodeResourceExhausted
	CodeDeadline
	CodeCanceled
	CodeUnimplemented
)

// codeTable is the one place where our codes, gRPC's and the reasons on the wire meet. Two of our codes may
// share a gRPC code: the reason tells them apart.
var codeTable = []struct {
	code   Code
	grpc   codes.Code
	reason string
	text   string
}{
	{CodeInternal, codes.Internal, "INTERNAL", "internal error"},
	{CodeInvalid, codes.InvalidArgument, "INVALID", "invalid"},
	{CodeNotFound, codes.NotFound, "NOT_FOUND", "not found"},
	{CodeExists, codes.AlreadyExists, "EXISTS", "already exists"},
	{CodeConflict, codes.Aborted, "CONFLICT", "conflict"},
	{CodeFailedPrecondition, codes.FailedPrecondition, "FAILED_PRECONDITION", "not possible now"},
	{CodeInUse, codes.FailedPrecondition, "IN_USE", "in use"},
	{CodeNotManager, codes.FailedPrecondition, "NOT_MANAGER", "this node is not a manager"},
	{CodeUnavailable, codes.Unavailable, "UNAVAILABLE", "unavailable"},
	{CodeNotLeader, codes.Unavailable, "NOT_LEADER", "not the leader"},
	{CodePermissionDenied, codes.PermissionDenied, "PERMISSION_DENIED", "permission denied"},
	{CodeUnauthenticated, codes.Unauthenticated, "UNAUTHENTICATED", "not authenticated"},
	{CodeResourceExhausted, codes.ResourceExhausted, "RESOURCE_EXHAUSTED", "limit reached"},
	{CodeDeadline, codes.DeadlineExceeded, "DEADLINE", "timed out"},
	{CodeCanceled, codes.Canceled, "CANCELED", "canceled"},
	{CodeUnimplemented, codes.Unimplemented, "UNIMPLEMENTED", "not supported by this version"},
}

// String returns the code in words, for example "not found".
func (c Code) String() string {
	for _, row := range codeTable {
		if row.code == c {
			return row.text
		}
	}
	return "code " + strconv.Itoa(int(c))
}

// Error is an error that crosses the wire. Message is written for the user: what was wrong, with which
// object, and what to do.
type Error struct {
	Code    Code
	Message string

	cause error
}

// Sentinels for errors.Is, which compares codes alone.
var (
	ErrInternal           = &Error{Code: CodeInternal}
	ErrInvalid            = &Error{Code: CodeInvalid}
	ErrNotFound           = &Error{Code: CodeNotFound}
	ErrExists             = &Error{Code: CodeExists}
	ErrConflict           = &Error{Code: CodeConflict}
	ErrInUse              = &Error{Code: CodeInUse}
	ErrFailedPrecondition = &Error{Code: CodeFailedPrecondition}
	ErrUnavailable        = &Error{Code: CodeUnavailable}
	ErrNotLeader          = &Error{Code: CodeNotLeader}
	ErrNotManager         = &Error{Code: CodeNotManager}
	ErrPermissionDenied   = &Error{Code: CodePermissionDenied}
	ErrUnauthenticated    = &Error{Code: CodeUnauthenticated}
	ErrResourceExhausted  = &Error{Code: CodeResourceExhausted}
	ErrDeadline           = &Error{Code: CodeDeadline}
	ErrCanceled           = &Error{Code: CodeCanceled}
	ErrUnimplemented      = &Error{Code: CodeUnimplemented}
)

// Errorf makes an Error; %w keeps the cause for errors.Is and errors.As on this side of the wire.
func Errorf(code Code, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), cause: err}
}

// CodeOf returns the code of the first Error in err's tree; a context's errors have theirs, any other error
// is CodeInternal, and nil is 0.
func CodeOf(err error) Code {
	var e *Error
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e.Code
	case errors.Is(err, context.DeadlineExceeded):
		return CodeDeadline
	case errors.Is(err, context.Canceled):
		return CodeCanceled
	}
	if s, ok := status.FromError(err); ok {
		return codeOfStatus(s)
	}
	return CodeInternal
}

func (e *Error) Error() string {
	if e.Message == "" {
		return e.Code.String()
	}
	return e.Message
}

// Is reports whether target is an Error of the same code, and of the same message where target has one.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && (t.Message == "" || t.Message == e.Message)
}

func (e *Error) Unwrap() error { return e.cause }

// GRPCStatus lets grpc-go's own helpers read the error.
func (e *Error) GRPCStatus() *status.Status {
	for _, row := range codeTable {
		if row.code == e.Code {
			return statusOf(row.grpc, row.reason, e.Error())
		}
	}
	return statusOf(codes.Internal, "INTERNAL", e.Error())
}

// reasonDomain marks statuses that a swarmd wrote, as opposed to those that grpc-go makes up locally.
const reasonDomain = "swarmd"

func statusOf(code codes.Code, reason, message string) *status.Status {
	s := status.New(code, strings.ToValidUTF8(message, "\uFFFD"))
	if detailed, err := s.WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: reasonDomain}); err == nil {
		return detailed
	}
	return s
}

// ToStatus turns a handler's error into one that grpc-go sends: an Error with its code and reason, a context's
// error as deadline or cancellation, a status as it is, anything else as internal with its text.
func ToStatus(err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return (&Error{Code: e.Code, Message: err.Error()}).GRPCStatus().Err()
	}
	if s, ok := status.FromError(err); ok {
		return s.Err()
	}
	return (&Error{Code: CodeOf(err), Message: err.Error()}).GRPCStatus().Err()
}

// FromStatus is the way back: it turns what a gRPC call returned into an Error. Failures of the transport get
// a text for a user. An error that is no status, and nil, are returned as they are. It may be applied twice.
func FromStatus(err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		// The dialer's own Error comes back in grpc-go's wrapping.
		if message := unwrapTransport(err.Error()); message != err.Error() {
			return &Error{Code: e.Code, Message: message, cause: err}
		}
		return err
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return &Error{Code: CodeOf(err), Message: err.Error(), cause: err}
	}
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	code := codeOfStatus(s)
	if reasonOf(s) != "" {
		return &Error{Code: code, Message: unwrapTransport(s.Message()), cause: contextCause(code)}
	}
	code, message := explainTransport(code, s.Message())
	return &Error{Code: code, Message: message, cause: contextCause(code)}
}

// contextCause keeps errors.Is(err, context.DeadlineExceeded) true across the wire.
func contextCause(code Code) error {
	switch code {
	case CodeDeadline:
		return context.DeadlineExceeded
	case CodeCanceled:
		return context.Canceled
	}
	return nil
}

func reasonOf(s *status.Status) string {
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == reasonDomain {
			return info.GetReason()
		}
	}
	return ""
}

// codeOfStatus goes by the reason where it fits the gRPC code, else by the first of our codes for it.
func codeOfStatus(s *status.Status) Code {
	reason := reasonOf(s)
	var first Code
	for _, row := range codeTable {
		if row.grpc != s.Code() {
			continue
		}
		if row.reason == reason {
			return row.code
		}
		if first == 0 {
			first = row.code
		}
	}
	if first == 0 {
		return CodeInternal
	}
	return first
}

// Prefixes that grpc-go puts before what our dialer or handshake said.
var transportPrefixes = []string{
	"last connection error: ", "last resolver error: ",
	"connection error: desc = ", "connection error: ",
	"transport: Error while dialing: ", "transport: authentication handshake failed: ",
	"error reading server preface: ", "connection closed before server preface received: ",
}

// unwrapTransport strips what grpc-go puts around an error of our dialer or handshake.
func unwrapTransport(message string) string {
	if i := strings.Index(message, "last connection error: "); i >= 0 {
		message = message[i:]
	}
	for changed := true; changed; {
		changed = false
		for _, p := range transportPrefixes {
			rest, ok := strings.CutPrefix(message, p)
			if !ok {
				continue
			}
			if unquoted, err := strconv.Unquote(rest); err == nil {
				rest = unquoted
			}
			message, changed = rest, true
		}
	}
	return message
}

// explainTransport words a failure that this side's grpc-go made up, and what is known to happen when a peer
// refuses a certificate.
func explainTransport(code Code, message string) (Code, string) {
	message = unwrapTransport(message)
	switch {
	case strings.Contains(message, "remote error: tls: bad certificate"),
		strings.Contains(message, "remote error: tls: certificate required"):
		return CodePermissionDenied, "the manager refused this node's certificate: the node was removed from the " +
			"cluster, or its certificate has expired; run `swarmctl leave` here and join again"
	case strings.Contains(message, "remote error: tls: no application protocol"):
		return CodeUnavailable, "the other side does not speak this version's protocol; check that its address is that of a manager"
	case code == CodeUnimplemented && strings.Contains(message, "swarm.v1.Control"):
		return CodeNotManager, notManagerText
	case code == CodeUnavailable && !strings.Contains(message, "; "):
		return code, message + "; the connection was lost: try again"
	}
	return code, message
}

const notManagerText = "this node is not a manager; run the command on a manager, or make this node one " +
	"there with `swarmctl node promote`"

// NotManager is the error of a manager's command on another node.
func NotManager() error { return &Error{Code: CodeNotManager, Message: notManagerText} }
