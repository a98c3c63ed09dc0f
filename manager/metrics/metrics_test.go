package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func vector(value string) string {
	return fmt.Sprintf(`{"status":"success","data":{"resultType":"vector","result":[{"metric":{"job":"x"},"value":[1700000000.1,%q]}]}}`, value)
}

func TestAsk_Answers_AreReadOrSaidWhyNot(t *testing.T) {
	for name, test := range map[string]struct {
		code int
		body string
		want sample
	}{
		"vector":      {200, vector("0.25"), sample{value: 0.25}},
		"scalar":      {200, `{"status":"success","data":{"resultType":"scalar","result":[1,"7"]}}`, sample{value: 7}},
		"first of":    {200, `{"status":"success","data":{"resultType":"vector","result":[{"value":[1,"1"]},{"value":[1,"2"]}]}}`, sample{value: 1}},
		"infinite":    {200, vector("+Inf"), sample{value: math.Inf(1)}},
		"huge":        {200, vector("1e999"), sample{value: math.Inf(1)}},
		"NaN":         {200, vector("NaN"), sample{unknown: "HOST answers NaN"}},
		"no number":   {200, vector("x"), sample{unknown: `HOST answers "x", which is not a number`}},
		"no data":     {200, `{"status":"success","data":{"resultType":"vector","result":[]}}`, sample{unknown: "HOST has no data for the query"}},
		"matrix":      {200, `{"status":"success","data":{"resultType":"matrix","result":[]}}`, sample{unknown: `HOST answers a result of type "matrix"; let the query give one number`}},
		"no value":    {200, `{"status":"success","data":{"resultType":"vector","result":[{}]}}`, sample{unknown: "HOST answers a sample without a value"}},
		"half value":  {200, `{"status":"success","data":{"resultType":"scalar","result":[1]}}`, sample{unknown: "HOST answers a sample without a value"}},
		"no result":   {200, `{"status":"success","data":{"resultType":"vector"}}`, sample{unknown: "HOST answers what is not Prometheus' JSON"}},
		"bad query":   {400, `{"status":"error","errorType":"bad_data","error":"parse error\n: unexpected"}`, sample{unknown: "HOST refuses the query: parse error : unexpected"}},
		"unavailable": {503, "<html>", sample{unknown: "HOST answers 503 Service Unavailable"}},
		"a page":      {200, "<html>", sample{unknown: "HOST answers what is not Prometheus' JSON"}},
		"empty JSON":  {200, "{}", sample{unknown: "HOST answers 200 OK"}},
		"null":        {200, "null", sample{unknown: "HOST answers 200 OK"}},
		"nothing":     {204, "", sample{unknown: "HOST answers 204 No Content"}},
		"flood":       {200, strings.Repeat(" ", maxAnswer+1), sample{unknown: "HOST answers more than 65536 bytes; ask for one sample"}},
		"a novel":     {400, `{"status":"error","error":"` + strings.Repeat("€", 1000) + `"}`, sample{unknown: "HOST refuses the query: "}},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Query().Get("query") != "up" {
					t.Errorf("asked for %s", r.URL)
				}
				w.WriteHeader(test.code)
				io.WriteString(w, test.body)
			}))
			defer server.Close()
			a := &Asker{client: newClient(nil)}
			got := a.ask(t.Context(), &swarmpb.CanaryMetric{Url: server.URL + "/api/v1/query?query=up"})
			text := strings.Replace(got.unknown, strings.TrimPrefix(server.URL, "http://"), "HOST", 1)
			if name == "a novel" {
				if !strings.HasPrefix(text, test.want.unknown) || len(got.unknown) > maxText+3 {
					t.Fatalf("%d bytes: %s", len(got.unknown), text)
				}
				return
			}
			if got.value != test.want.value || text != test.want.unknown {
				t.Fatalf("got %v %q, want %v %q", got.value, text, test.want.value, test.want.unknown)
			}
		})
	}
}

func TestAsk_NoAnswer_IsUnknownWithTheReason(t *testing.T) {
	gone := httptest.NewServer(nil)
	gone.Close()
	hangs := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer hangs.Close()
	var target string
	moved := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, target, http.StatusFound) }))
	defer moved.Close()
	a := &Asker{client: newClient(nil)}
	ask := func(url string) string {
		t.Helper()
		got := a.ask(t.Context(), &swarmpb.CanaryMetric{Url: url, Interval: durationpb.New(time.Second)})
		if got.unknown == "" {
			t.Fatalf("%s: %v is known", url, got.value)
		}
		return got.unknown
	}
	for url, want := range map[string]string{
		gone.URL: " does not answer: connection refused", hangs.URL: " does not answer: timed out", "ftp://h/": "unsupported protocol scheme", "http://%zz/": "its address is not one",
	} {
		if got := ask(url); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", url, got, want)
		}
	}
	target = "file:///etc/passwd"
	if got := ask(moved.URL); !strings.Contains(got, `it redirects to "file", which is not HTTP`) {
		t.Errorf("redirected to a file: %q", got)
	}
	target = moved.URL
	if got := ask(moved.URL); !strings.Contains(got, "it redirects more than 3 times") {
		t.Errorf("redirected for ever: %q", got)
	}
	good := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, vector("1")) }))
	defer good.Close()
	target = good.URL
	if got := a.ask(t.Context(), &swarmpb.CanaryMetric{Url: moved.URL}); got.value != 1 || got.unknown != "" {
		t.Errorf("redirected to an answer: %v", got)
	}
}

// prometheus answers queries in place of a network.
type prometheus struct {
	mu    sync.Mutex
	body  string
	err   error
	calls int
	// hold is how long an answer takes.
	hold time.Duration
	busy int
	most int
}

func (p *prometheus) RoundTrip(r *http.Request) (*http.Response, error) {
	p.mu.Lock()
	p.calls++
	p.busy++
	p.most = max(p.most, p.busy)
	body, err, hold := p.body, p.err, p.hold
	p.mu.Unlock()
	defer func() { p.mu.Lock(); p.busy--; p.mu.Unlock() }()
	select {
	case <-time.After(hold):
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

func (p *prometheus) says(body string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.body, p.err = body, nil
}

func (p *prometheus) fails(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
}

// world is a store with an Asker on it, in virtual time.
type world struct {
	*testing.T
	store  *store.Store
	leader *store.LocalProposer
	*prometheus
	done   chan error
	cancel context.CancelFunc
	writes int
	refuse error
}

func (w *world) Term() uint64 { return w.leader.Term() }

func (w *world) Propose(ctx context.Context, p *swarmpb.Proposal) (*swarmpb.Result, error) {
	w.mu.Lock()
	w.writes++
	refuse := w.refuse
	w.mu.Unlock()
	if refuse != nil {
		return nil, refuse
	}
	return w.leader.Propose(ctx, p)
}

func newWorld(t *testing.T) *world {
	st := store.New()
	w := &world{T: t, store: st, leader: store.NewLocalProposer(st), prometheus: &prometheus{body: vector("0.01")}, done: make(chan error, 1)}
	a, err := New(Config{Store: st, Leader: w, Transport: w.prometheus, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	var ctx context.Context
	ctx, w.cancel = context.WithCancel(t.Context())
	go func() { w.done <- a.Run(ctx) }()
	return w
}

func (w *world) end() {
	w.Helper()
	w.cancel()
	if err := <-w.done; !errors.Is(err, context.Canceled) {
		w.Fatalf("run: %v", err)
	}
}

func (w *world) put(rows ...*swarmpb.Row) {
	w.Helper()
	p := &swarmpb.Proposal{}
	for _, row := range rows {
		p.Writes = append(p.Writes, &swarmpb.Write{Op: &swarmpb.Write_Put{Put: row}})
	}
	if _, err := w.leader.Propose(context.Background(), p); err != nil {
		w.Fatal(err)
	}
}

// canary makes a service whose canary is under way, with a metric of at most 0.05 asked for every 2 s.
func (w *world) canary(id string, state swarmpb.UpdateState, startedAt int64) {
	w.Helper()
	w.canaryWith(id, state, startedAt, 1000)
}

// canaryWith is canary with a share of the connections.
func (w *world) canaryWith(id string, state swarmpb.UpdateState, startedAt int64, share uint32) {
	w.Helper()
	most := 0.05
	task := &swarmpb.TaskSpec{Container: &swarmpb.ContainerSpec{Image: "web"}}
	w.put(
		&swarmpb.Row{Row: &swarmpb.Row_Template{Template: &swarmpb.Template{ServiceId: id, Version: 1, Spec: task}}},
		&swarmpb.Row{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{Id: id, TemplateVersion: 1, Spec: &swarmpb.ServiceSpec{Name: id, Task: task, Update: &swarmpb.UpdateConfig{
			Strategy: swarmpb.UpdateStrategy_UPDATE_STRATEGY_CANARY, CanaryMetric: &swarmpb.CanaryMetric{Url: "http://prometheus/" + id, Max: &most, Interval: durationpb.New(2 * time.Second)},
		}}}}},
		&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: &swarmpb.ServiceProgress{ServiceId: id, Update: &swarmpb.UpdateStatus{
			State: state, TemplateVersion: 1, StartedAt: startedAt, Strategy: swarmpb.UpdateStrategy_UPDATE_STRATEGY_CANARY, Share: share,
		}}}},
	)
}

func (w *world) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

const (
	underWay = swarmpb.UpdateState_UPDATE_STATE_UPDATING
	over     = swarmpb.UpdateState_UPDATE_STATE_COMPLETED
)

func TestRun_VerdictChanges_IsWrittenAtOnceAndNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.canary("web", underWay, 7)
		w.pass(4 * time.Second)
		expect := func(what, message string, failing bool, most int) {
			t.Helper()
			row := w.store.View().ServiceMetric("web")
			if row.GetMessage() != message || (row.GetFailedSince() != 0) != failing || row.GetUpdate() != 7 || row.GetAt() == 0 || w.writes > most {
				t.Fatalf("%s: %v after %d writes", what, row, w.writes)
			}
		}
		expect("fine", "0.01, at most 0.05", false, 1)
		w.pass(time.Minute)
		expect("still fine", "0.01, at most 0.05", false, 1)
		w.says(vector("0.01001"))
		w.pass(time.Minute)
		expect("hardly another value", "0.01, at most 0.05", false, 1)

		w.says(vector("0.07"))
		before := time.Now().UnixNano()
		w.pass(4 * time.Second)
		expect("failing", "0.07 is more than 0.05", true, 2)
		since := w.store.View().ServiceMetric("web").GetFailedSince()
		if since < before || since > time.Now().UnixNano() {
			t.Fatalf("failing since %d, asked from %d on", since, before)
		}
		w.says(vector("0.09"))
		w.pass(20 * time.Second)
		expect("failing more", "0.09 is more than 0.05", true, 3)
		if again := w.store.View().ServiceMetric("web").GetFailedSince(); again != since {
			t.Fatalf("since %d, it was %d", again, since)
		}

		w.fails(errors.New("no route"))
		w.pass(4 * time.Second)
		expect("not known", "not known: prometheus does not answer: no route", false, 4)
		w.says(vector("NaN"))
		w.pass(20 * time.Second)
		expect("no number", "not known: prometheus answers NaN", false, 5)
		w.says(vector("0"))
		w.pass(4 * time.Second)
		expect("fine again", "0, at most 0.05", false, 6)
		w.end()
	})
}

func TestRun_ValueMovesAllTheTime_IsWrittenNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.canary("web", underWay, 7)
		for i := range 60 {
			w.says(vector(fmt.Sprint(0.001 * float64(i%40))))
			w.pass(time.Second)
		}
		if w.writes < 5 || w.writes > 13 {
			t.Errorf("%d writes in a minute", w.writes)
		}
		w.end()
	})
}

// A least value is not reached before there is a connection to count: that must not be held against the new version
// in the moment in which it gets some.
func TestRun_NoConnectionsYet_NobodyAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.says(vector("0.07"))
		w.canaryWith("web", underWay, 7, 0)
		w.pass(10 * time.Second)
		if row := w.store.View().ServiceMetric("web"); row != nil || w.calls > 0 {
			t.Fatalf("asked %d times before it has any connections: %v", w.calls, row)
		}
		w.canaryWith("web", underWay, 7, 1000)
		w.pass(3 * time.Second)
		if row := w.store.View().ServiceMetric("web"); row.GetFailedSince() == 0 {
			t.Fatalf("with connections: %v", row)
		}
		w.canaryWith("web", swarmpb.UpdateState_UPDATE_STATE_PAUSED, 7, 0)
		w.pass(3 * time.Second)
		if row := w.store.View().ServiceMetric("web"); row.GetFailedSince() == 0 {
			t.Fatalf("paused because of it: %v", row)
		}
		w.end()
	})
}

func TestRun_UpdateOver_TheRowGoesAndNobodyAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.canary("web", underWay, 7)
		w.says(vector("0.07"))
		w.pass(3 * time.Second)
		// Another update begins anew.
		w.canary("web", swarmpb.UpdateState_UPDATE_STATE_PAUSED, 8)
		w.pass(5 * time.Second)
		if row := w.store.View().ServiceMetric("web"); row.GetUpdate() != 8 || row.GetFailedSince() == 0 {
			t.Fatalf("row %v", row)
		}
		for _, state := range []swarmpb.UpdateState{over, swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_STARTED} {
			w.canary("web", underWay, 9)
			w.pass(5 * time.Second)
			if w.store.View().ServiceMetric("web") == nil {
				t.Fatal("nobody asks")
			}
			w.canary("web", state, 9)
			w.pass(3 * time.Second)
			if row := w.store.View().ServiceMetric("web"); row != nil {
				t.Fatalf("%s: row %v", state.Name(), row)
			}
			calls := w.calls
			w.pass(time.Minute)
			if w.calls != calls {
				t.Errorf("%s: asked %d times", state.Name(), w.calls-calls)
			}
		}
		w.end()
	})
}

func TestRun_ManySlowQueries_AreBoundedAndAllHaveTheirTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.hold = 1500 * time.Millisecond
		for i := range 40 {
			w.canary(fmt.Sprint("web", i), underWay, 7)
		}
		w.pass(30 * time.Second)
		if w.most > maxAsking {
			t.Errorf("%d queries at once", w.most)
		}
		for i := range 40 {
			if w.store.View().ServiceMetric(fmt.Sprint("web", i)) == nil {
				t.Errorf("web%d never had its turn", i)
			}
		}
		w.end()
	})
}

func TestRun_WriteFails_IsTriedAgainAndTheTermEndsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.refuse = errors.New("no quorum")
		w.canary("web", underWay, 7)
		w.pass(5 * time.Second)
		w.mu.Lock()
		if w.writes < 3 {
			t.Errorf("%d tries in 5 s", w.writes)
		}
		w.refuse = nil
		w.mu.Unlock()
		w.pass(2 * time.Second)
		if w.store.View().ServiceMetric("web") == nil {
			t.Error("nothing is written")
		}
		w.mu.Lock()
		w.refuse = fmt.Errorf("write: %w", store.ErrStaleTerm)
		w.mu.Unlock()
		w.says(vector("9"))
		if err := <-w.done; !errors.Is(err, store.ErrStaleTerm) {
			t.Errorf("run: %v", err)
		}
	})
}

func TestNew_Incomplete_IsAnError(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("made without a store")
	}
}

func TestRow_Bounds_GiveTheVerdict(t *testing.T) {
	least, most := 0.5, 2.0
	for _, test := range []struct {
		min, max *float64
		value    float64
		failing  bool
		message  string
	}{
		{&least, nil, 0.5, false, "0.5, at least 0.5"},
		{&least, nil, 0.49, true, "0.49 is less than 0.5"},
		{nil, &most, 2, false, "2, at most 2"},
		{nil, &most, math.Inf(1), true, "+Inf is more than 2"},
		{&least, &most, 1, false, "1, of 0.5 to 2"},
		{&least, &most, -1, true, "-1 is less than 0.5"},
	} {
		service := &swarmpb.Service{Spec: &swarmpb.ServiceSpec{Update: &swarmpb.UpdateConfig{CanaryMetric: &swarmpb.CanaryMetric{Min: test.min, Max: test.max}}}}
		row := sample{value: test.value}.row(service, nil, nil, time.Unix(9, 0))
		if row.GetMessage() != test.message || (row.GetFailedSince() != 0) != test.failing || row.GetValue() != test.value {
			t.Errorf("%v: %v", test.value, row)
		}
	}
}
