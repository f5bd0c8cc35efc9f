package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/certs"
	"footplate/controlplane/client"
	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// Connection is a session's way to the cluster.
type Connection struct{ client *client.Client }

// connect makes a connection; nothing is sent yet. What can be tried again is
// tried again for as long as retry; the client's own measure when it is zero.
func connect(to endpoint, via string, retry time.Duration) (*Connection, error) {
	cfg := client.Config{Addrs: to.addrs, Token: to.token, Via: via, Retry: retry}
	if to.ca != "" {
		ca, err := certs.OpenAuthority(to.ca, slog.New(slog.DiscardHandler))
		if err != nil {
			return nil, fleet.AsError(err).WithHint("--ca FILE, or FOOTPLATE_CA: ca.pem of footplate tls init")
		}
		cfg.Dial = ca.Dial
	}
	c, err := client.New(cfg)
	if err != nil {
		return nil, err
	}
	return &Connection{c}, nil
}

// Client returns the client behind the connection.
func (c *Connection) Client() *client.Client { return c.client }

func (c *Connection) do(ctx context.Context, o *op.Op, args any, r api.Request) (api.Reply, error) {
	reply, err := c.client.Do(ctx, o, args, client.Options{
		Key: r.Key, Reason: r.Reason, Incident: r.Incident, DryRun: r.DryRun, Confirm: r.Confirm,
	})
	return reply, older(o, err)
}

func (c *Connection) query(ctx context.Context, o *op.Op, args any, stale bool) (json.RawMessage, string, error) {
	raw, age, err := c.client.Query(ctx, o, args, stale)
	return raw, string(age), older(o, err)
}

func (c *Connection) stream(ctx context.Context, o *op.Op, args any, q api.Request, stale bool) (io.ReadCloser, error) {
	r, err := c.client.Stream(ctx, o, args, client.Options{Key: q.Key, Reason: q.Reason, Incident: q.Incident, Stale: stale})
	return r, older(o, err)
}

// older explains why a server does not know an operation that this program has:
// it is not for the person to find another name for it.
func older(o *op.Op, err error) error {
	e := fleet.AsError(err)
	if e == nil || e.Code != fleet.CodeNotFound || e.Msg != fmt.Sprintf("there is no operation %q", o.Path()) {
		return err
	}
	return fleet.NotFoundf("the server does not know %q: it is older than this footplate (%s)", o.Name, Version).
		WithHint("cluster status shows the versions of the nodes")
}

// How the backlog of the channel is told from what comes live: the server sends
// all that it has at once, and then waits.
const (
	backlogQuiet = 200 * time.Millisecond // no line for this long after the first
	backlogEmpty = time.Second            // no line at all
)

// Lines yields the newest lines of the channel, at most last, then a line
// without a number, then those that come, until ctx ends. A line that stands
// for a run of entries is yielded again when it has grown, then for the new
// entries alone, so that each entry is told once. The error of a connection
// that broke is yielded, and the next node is tried.
func (c *Connection) Lines(ctx context.Context, last int) iter.Seq2[state.Line, error] {
	return func(yield func(state.Line, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		type event struct {
			line state.Line
			err  error
		}
		events := make(chan event)
		go func() {
			defer close(events)
			var upto state.Line
			for ctx.Err() == nil {
				for e, err := range c.client.Events(ctx, upto.N) {
					out := event{err: err}
					if err == nil {
						if e.Line == nil {
							continue
						}
						out.line = *e.Line
						switch {
						case out.line.N < upto.N, out.line.N == upto.N && out.line.Last <= upto.Last:
							continue
						case out.line.N == upto.N:
							out.line = grown(upto, out.line)
						}
						upto = *e.Line
					}
					select {
					case events <- out:
					case <-ctx.Done():
						return
					}
				}
				pause(ctx, time.Second)
			}
		}()

		var backlog []state.Line
		quiet := time.NewTimer(backlogEmpty)
		defer quiet.Stop()
		live := false
		for {
			select {
			case e, ok := <-events:
				switch {
				case !ok:
					return
				case live || e.err != nil:
					if !yield(e.line, e.err) {
						return
					}
					continue
				}
				backlog = append(backlog, e.line)
				quiet.Reset(backlogQuiet)
			case <-quiet.C:
				live = true
				for _, l := range append(backlog[max(0, len(backlog)-last):], state.Line{}) {
					if !yield(l, nil) {
						return
					}
				}
				backlog = nil
			}
		}
	}
}

// grown returns what a line says beyond what it said before.
func grown(before, now state.Line) state.Line {
	now.First = before.Last + 1
	now.Count -= before.Count
	return now
}
