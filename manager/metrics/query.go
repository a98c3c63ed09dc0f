package metrics

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const (
	// maxAnswer bounds an answer, in bytes: an instant query's single sample has a few hundred.
	maxAnswer = 64 << 10
	// queryTimeout bounds a query; one that is asked more often has no longer than until the next.
	queryTimeout = 5 * time.Second
	maxRedirects = 3
	// maxText bounds what is told of an answer, in bytes.
	maxText = 200
)

// newClient makes a client that only speaks HTTP, wherever it is sent.
func newClient(transport http.RoundTripper) *http.Client {
	if transport == nil {
		base := http.DefaultTransport.(*http.Transport).Clone()
		base.MaxIdleConns, base.IdleConnTimeout, base.MaxResponseHeaderBytes = maxAsking, time.Minute, maxAnswer
		transport = base
	}
	return &http.Client{Transport: transport, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		if len(via) > maxRedirects {
			return fmt.Errorf("it redirects more than %d times", maxRedirects)
		}
		if scheme := req.URL.Scheme; scheme != "http" && scheme != "https" {
			return fmt.Errorf("it redirects to %q, which is not HTTP", scheme)
		}
		return nil
	}}
}

// sample is what a query came to.
type sample struct {
	value float64
	// unknown is why there is no value; empty when there is one.
	unknown string
}

func unknown(format string, args ...any) sample {
	return sample{unknown: cut(fmt.Sprintf(format, args...))}
}

// cut makes one short line of what another program said.
func cut(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return ' '
		}
		return r
	}, text)
	if len(text) <= maxText {
		return text
	}
	end := maxText
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "..."
}

// ask sends the query.
func (a *Asker) ask(ctx context.Context, metric *swarmpb.CanaryMetric) sample {
	ctx, cancel := context.WithTimeout(ctx, min(queryTimeout, metric.IntervalOr()))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, metric.GetUrl(), nil)
	if err != nil {
		return unknown("its address is not one: %s", reason(err))
	}
	host := req.URL.Host
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "swarmd")
	response, err := a.client.Do(req)
	if err != nil {
		return unknown("%s does not answer: %s", host, reason(err))
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	switch {
	case err != nil:
		return unknown("%s does not answer: %s", host, reason(err))
	case len(body) > maxAnswer:
		return unknown("%s answers more than %d bytes; ask for one sample", host, maxAnswer)
	}
	return parse(host, response.StatusCode, body)
}

// reason is why a request failed, without addresses and ports that differ each time.
func reason(err error) string {
	var errno syscall.Errno
	var dns *net.DNSError
	var failed *url.Error
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return "timed out"
	case errors.As(err, &errno):
		return errno.Error()
	case errors.As(err, &dns):
		return fmt.Sprintf("%s: %s", dns.Name, dns.Err)
	case errors.As(err, &failed):
		return failed.Err.Error()
	}
	return err.Error()
}

// answer is Prometheus' to an instant query.
type answer struct {
	Status string `json:"status"`
	Error  string `json:"error"`
	Data   struct {
		ResultType string          `json:"resultType"`
		Result     json.RawMessage `json:"result"`
	} `json:"data"`
}

// parse takes the first sample of a vector, or a scalar, out of an answer.
func parse(host string, code int, body []byte) sample {
	var a answer
	if err := json.Unmarshal(body, &a); err != nil {
		if code != http.StatusOK {
			return unknown("%s answers %d %s", host, code, http.StatusText(code))
		}
		return unknown("%s answers what is not Prometheus' JSON", host)
	}
	if a.Status != "success" {
		if a.Error == "" {
			return unknown("%s answers %d %s", host, code, http.StatusText(code))
		}
		return unknown("%s refuses the query: %s", host, a.Error)
	}
	point := a.Data.Result
	switch a.Data.ResultType {
	case "scalar":
	case "vector":
		var vector []struct {
			Value json.RawMessage `json:"value"`
		}
		if err := json.Unmarshal(a.Data.Result, &vector); err != nil {
			return unknown("%s answers what is not Prometheus' JSON", host)
		}
		if len(vector) == 0 {
			return unknown("%s has no data for the query", host)
		}
		point = vector[0].Value
	default:
		return unknown("%s answers a result of type %q; let the query give one number", host, a.Data.ResultType)
	}
	var pair []json.RawMessage
	var text string
	if err := json.Unmarshal(point, &pair); err != nil || len(pair) != 2 || json.Unmarshal(pair[1], &text) != nil {
		return unknown("%s answers a sample without a value", host)
	}
	value, err := strconv.ParseFloat(text, 64)
	switch {
	case err != nil && !errors.Is(err, strconv.ErrRange): // out of range is an infinity, which is a value
		return unknown("%s answers %q, which is not a number", host, text)
	case math.IsNaN(value):
		return unknown("%s answers NaN", host)
	}
	return sample{value: value + 0} // no negative zero: it would be two values that are equal
}

// row is what is known of a service's metric from now on.
func (s sample) row(service *swarmpb.Service, update *swarmpb.UpdateStatus, old *swarmpb.ServiceMetric, now time.Time) *swarmpb.ServiceMetric {
	row := &swarmpb.ServiceMetric{ServiceId: service.GetId(), Update: update.GetStartedAt(), Value: s.value, At: now.UnixNano()}
	if s.unknown != "" {
		row.Message = "not known: " + s.unknown
		return row
	}
	metric, value := service.GetSpec().GetUpdate().GetCanaryMetric(), number(s.value)
	switch {
	case metric.Min != nil && s.value < metric.GetMin():
		row.Message, row.FailedSince = value+" is less than "+number(metric.GetMin()), now.UnixNano()
	case metric.Max != nil && s.value > metric.GetMax():
		row.Message, row.FailedSince = value+" is more than "+number(metric.GetMax()), now.UnixNano()
	case metric.Min == nil:
		row.Message = value + ", at most " + number(metric.GetMax())
	case metric.Max == nil:
		row.Message = value + ", at least " + number(metric.GetMin())
	default:
		row.Message = fmt.Sprintf("%s, of %s to %s", value, number(metric.GetMin()), number(metric.GetMax()))
	}
	if row.FailedSince != 0 && old.GetUpdate() == row.Update && old.GetFailedSince() != 0 {
		row.FailedSince = old.GetFailedSince()
	}
	return row
}

// number is a value for people.
func number(x float64) string { return strconv.FormatFloat(x, 'g', 4, 64) }

// news tells whether next is worth a write: another verdict always is, another value or reason when it can be seen and
// the last write was long enough ago.
func news(old, next *swarmpb.ServiceMetric, rested bool) bool {
	if old == nil || old.GetUpdate() != next.GetUpdate() || verdict(old) != verdict(next) {
		return true
	}
	return rested && old.GetMessage() != next.GetMessage() && (verdict(next) == notKnown || noticeable(old.GetValue(), next.GetValue()))
}

// The verdicts on a metric.
const (
	notKnown = iota
	within
	outside
)

func verdict(row *swarmpb.ServiceMetric) int {
	switch {
	case row.GetFailedSince() != 0:
		return outside
	case strings.HasPrefix(row.GetMessage(), "not known: "):
		return notKnown
	}
	return within
}

// noticeable tells whether two values differ by more than a hundredth of the larger one.
func noticeable(a, b float64) bool {
	if math.IsInf(a, 0) || math.IsInf(b, 0) {
		return a != b
	}
	return math.Abs(a-b) > max(math.Abs(a), math.Abs(b))/100
}
