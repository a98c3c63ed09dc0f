package registries

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
)

// What a registry's answer means for who asked.
var (
	// ErrMissing: it has no such image.
	ErrMissing = errors.New("no such image")
	// ErrDenied: it wants other credentials, or hides the image from these.
	ErrDenied = errors.New("denied")
)

// Error is why a registry gives no image, in one line that is the same at every try.
type Error struct {
	Reason string
	cause  error
}

func (e *Error) Error() string { return e.Reason }

func (e *Error) Unwrap() error { return e.cause }

// Explain says in one line why the registry at host did not give an image, for a user who can do something about it.
// user is the name that was shown to it, empty when it was asked without credentials. What it could not answer wraps
// neither ErrMissing nor ErrDenied: that passes.
func Explain(host, user string, err error) *Error {
	text := strings.Join(strings.Fields(err.Error()), " ")
	reason := func(cause error, format string, args ...any) *Error {
		return &Error{fmt.Sprintf("registry %s ", host) + fmt.Sprintf(format, args...), cause}
	}
	denied := errdefs.IsUnauthorized(err) || errdefs.IsPermissionDenied(err)
	for _, sign := range []string{"401 Unauthorized", "403 Forbidden", "insufficient_scope", "authorization failed", "no basic auth credentials"} {
		denied = denied || strings.Contains(text, sign)
	}
	switch {
	case denied && user != "":
		return reason(ErrDenied, "refuses it to user %q: the password is wrong, or the image does not exist or is not for that user; "+
			"log in again with `swarmctl login %s`, then use --with-registry-auth", user, host)
	case denied:
		return reason(ErrDenied, "refuses it: the image does not exist, or needs credentials; for those use `swarmctl login %s`, then --with-registry-auth", host)
	case errdefs.IsNotFound(err) || strings.Contains(text, "404 Not Found"):
		return reason(ErrMissing, "has no such image: check the name and the tag")
	case strings.Contains(text, "server gave HTTP response to HTTPS client"):
		return reason(nil, "speaks plain HTTP: to allow that, set plain_http for it in %s, or start swarmd with --insecure-registry %s", FileName, host)
	case strings.Contains(text, "certificate signed by unknown authority"):
		return reason(nil, "shows a certificate of an unknown authority: name its ca in %s", FileName)
	}
	return &Error{"registry " + host + ": " + rootCause(text), nil}
}

// What stands around the cause of a failed request, and what differs at each try: the ports that the kernel chose.
var (
	aroundRequest = regexp.MustCompile(`^.*\b(?:Head|Get|Post|Put|HEAD|GET|POST|PUT) "[^"]*": `)
	failedLookup  = regexp.MustCompile(`\blookup (\S+?)(?: on \S+)?: (?:(?:read|write|dial) (?:udp|tcp)\S* \S+: )*`)
	sourceAddress = regexp.MustCompile(`\b(dial|read|write) (tcp|udp)(\S*) [^\s>]+->([^\s:]+|\[[^\]]+\]):(\d+)`)
	systemCall    = regexp.MustCompile(`: (?:connect|read|write|recvmsg|sendmsg): `)
)

// rootCause is the innermost reason of a failed request, the same at every try: it is shown while a pull is tried
// again, and a text that changes would be news each time.
func rootCause(text string) string {
	text = aroundRequest.ReplaceAllString(text, "")
	if at := failedLookup.FindStringSubmatchIndex(text); at != nil {
		return "cannot resolve " + text[at[2]:at[3]] + ": " + text[at[1]:]
	}
	text = sourceAddress.ReplaceAllString(text, "$1 $2$3 $4:$5")
	return systemCall.ReplaceAllString(text, ": ")
}
