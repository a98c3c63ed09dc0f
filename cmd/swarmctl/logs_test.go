package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// fakeLogs answers with messages, and remembers what it was asked.
type fakeLogs struct {
	swarmpb.UnimplementedLogsServer
	messages []*swarmpb.LogsStreamResponse
	asked    *swarmpb.LogsStreamRequest
}

func (l *fakeLogs) Stream(req *swarmpb.LogsStreamRequest, stream grpc.ServerStreamingServer[swarmpb.LogsStreamResponse]) error {
	l.asked = req
	if req.GetTarget() == "nope" {
		return wire.Errorf(wire.CodeNotFound, "%q: there is no such service and no such task; `swarmctl service ls` shows what there is", req.GetTarget())
	}
	for _, m := range l.messages {
		if err := stream.Send(m); err != nil {
			return err
		}
	}
	return nil
}

func sourceMessage(number uint32, task, node string) *swarmpb.LogsStreamResponse {
	return &swarmpb.LogsStreamResponse{Message: &swarmpb.LogsStreamResponse_Source{Source: &swarmpb.LogSource{
		Number: number, TaskId: fmt.Sprintf("web%d10000000000000000task", number), TaskName: task, ServiceName: "web", Attempt: 1, NodeId: n1ID, NodeHostname: node,
	}}}
}

func batchMessage(records ...*swarmpb.LogRecords) *swarmpb.LogsStreamResponse {
	return &swarmpb.LogsStreamResponse{Message: &swarmpb.LogsStreamResponse_Batch{Batch: &swarmpb.LogBatch{Records: records}}}
}

func logRecords(source uint32, lines ...string) *swarmpb.LogRecords {
	var text strings.Builder
	for i, line := range lines {
		text.WriteString(noon.Add(time.Duration(i)*time.Second).UTC().Format("2006-01-02T15:04:05.000000000Z") + " " + line + "\n")
	}
	return &swarmpb.LogRecords{Source: source, Records: []byte(text.String())}
}

func logMessages() []*swarmpb.LogsStreamResponse {
	return []*swarmpb.LogsStreamResponse{
		sourceMessage(1, "web.1", "n1"),
		batchMessage(logRecords(1, "stdout F listening on :80", "stderr F cannot open /etc/app.conf")),
		sourceMessage(2, "web.10", "node-2"),
		batchMessage(
			logRecords(2, "stdout F \x1b[31mred\x1b]0;a title\x07\x1b[2J \ttab", "stdout P half a line, ", "stdout F and the rest", "stdout F "),
			logRecords(1, "stdout F \xff no UTF-8 <&>"),
			logRecords(3, "stdout F of nobody"),
			&swarmpb.LogRecords{Source: 1, Records: []byte("garbage\nwithout end")},
		),
	}
}

func startLogs(t *testing.T, notices ...*swarmpb.LogNotice) (*fake, *fakeLogs) {
	f := start(t, false)
	f.logs.messages = logMessages()
	for _, n := range notices {
		f.logs.messages = append(f.logs.messages, &swarmpb.LogsStreamResponse{Message: &swarmpb.LogsStreamResponse_Notice{Notice: n}})
	}
	return f, f.logs
}

func TestLogs_EveryForm_ReadsAsBefore(t *testing.T) {
	f, _ := startLogs(t)
	golden(t, "logs", f.play(
		"service logs web", "service logs --timestamps web", "service logs --raw web", "service logs --raw -t web", "service logs --format json web",
		"service logs --no-task-ids web", "service logs --no-trunc web",
		"service logs nope", "service logs", "service logs web api", "service logs --tail few web", "service logs --since yesterday web",
		"service logs --format table web", "service logs --raw --format json web",
	))
	f.terminal = true
	golden(t, "logs_terminal", f.play("service logs web"))
}

func TestLogs_SomethingIsMissing_FailsUnlessItFollows(t *testing.T) {
	f, _ := startLogs(t, &swarmpb.LogNotice{Text: "node-2: it answers again"}, &swarmpb.LogNotice{Text: "node-3: no answer; its logs are missing\x1b[31m", Missing: true})
	golden(t, "logs_missing", f.play("service logs --tail 1 web", "service logs -f web"))
}

func TestLogs_Flags_MakeTheRequest(t *testing.T) {
	f, l := startLogs(t)
	for line, want := range map[string]*swarmpb.LogsStreamRequest{
		"web":                              {},
		"-f -n 5 web":                      {Follow: true, Tail: new(uint64(5))},
		"--tail 0 web":                     {Tail: new(uint64(0))},
		"--tail all web":                   {},
		"--since 10m web":                  {Since: noon.Add(-10 * time.Minute).UnixNano()},
		"--since 2020-01-02T03:04:05Z web": {Since: time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC).UnixNano()},
		"--since 1577934245 web":           {Since: 1577934245_000000000},
		"--since 1577934245.25 web":        {Since: 1577934245_250000000},
		"--since 2020-01-02+02:00 web":     {Since: time.Date(2020, 1, 1, 22, 0, 0, 0, time.UTC).UnixNano()},
		"--since 2020-01-02 web":           {Since: time.Date(2020, 1, 2, 0, 0, 0, 0, time.Local).UnixNano()},
	} {
		f.run(append([]string{"service", "logs"}, strings.Fields(line)...)...)
		want.Target = "web"
		if l.asked.String() != want.String() {
			t.Errorf("%s: asked for %v, want %v", line, l.asked, want)
		}
	}
}
