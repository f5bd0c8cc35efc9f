package bot

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"testing"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/client"
	"footplate/controlplane/op"
	"footplate/fleet"
)

// mortal is a replica's way to the world, which ends at a fault point.
type mortal struct {
	api     API
	surface Surface
	at      string // the fault point
	die     context.CancelFunc
	dead    bool
}

var errKilled = errors.New("killed")

// point kills the replica when it is the one; a dead replica does nothing any more.
func (m *mortal) point(name string) error {
	if name == m.at {
		m.dead = true
		m.die()
	}
	if m.dead {
		return errKilled
	}
	return nil
}

func (m *mortal) Do(ctx context.Context, by fleet.Principal, o *op.Op, args any, opts client.Options) (api.Reply, error) {
	if err := m.point("before the command"); err != nil {
		return api.Reply{}, err
	}
	reply, err := m.api.Do(ctx, by, o, args, opts)
	if dead := m.point("after the commit"); dead != nil {
		return api.Reply{}, dead
	}
	return reply, err
}

func (m *mortal) Query(ctx context.Context, by fleet.Principal, o *op.Op, args any, stale bool) (json.RawMessage, client.Stale, error) {
	return m.api.Query(ctx, by, o, args, stale)
}

func (m *mortal) Stream(ctx context.Context, by fleet.Principal, o *op.Op, args any, stale bool) (io.ReadCloser, error) {
	return m.api.Stream(ctx, by, o, args, stale)
}

func (m *mortal) Post(ctx context.Context, at Place, p Post) (Ref, error) {
	if err := m.point("before the post"); err != nil {
		return Ref{}, err
	}
	ref, err := m.surface.Post(ctx, at, p)
	if dead := m.point("after the post"); dead != nil {
		return Ref{}, dead
	}
	return ref, err
}

func (m *mortal) Update(ctx context.Context, r Ref, p Post) error {
	if err := m.point("before an edit"); err != nil {
		return err
	}
	return m.surface.Update(ctx, r, p)
}

func (m *mortal) Whisper(ctx context.Context, at Place, p Post) error {
	if err := m.point("before a whisper"); err != nil {
		return err
	}
	return m.surface.Whisper(ctx, at, p)
}

func (m *mortal) Upload(ctx context.Context, at Place, private bool, name, text string) error {
	return m.surface.Upload(ctx, at, private, name, text)
}

func (m *mortal) Find(ctx context.Context, at Place, id string) (Ref, bool, error) {
	return m.surface.Find(ctx, at, id)
}

// A replica is killed at every point between a command and its answer. The message was
// not acknowledged, so it is delivered again, to another: the command is run once, and
// answered once.
func TestKilled(t *testing.T) {
	for _, at := range []string{"before the command", "after the commit", "before the post", "after the post"} {
		t.Run(at, func(t *testing.T) {
			in(t, 1, func(w *room) {
				life, die := context.WithCancel(w.ctx)
				m := &mortal{api: w.fleet, surface: w.screen, at: at, die: die}
				doomed, err := New(Config{Registry: w.fleet.Registry, API: m, Surface: m, Secret: []byte("secret")})
				if err != nil {
					t.Fatal(err)
				}
				said := said("1", "pool scale linux +1")
				_, _ = doomed.Handle(life, said)
				if !m.dead {
					t.Fatal("it came past the point alive")
				}
				time.Sleep(3 * time.Second) // until Slack has missed the acknowledgement
				said.Again = true
				w.handle(0, said)
				time.Sleep(time.Minute)
				doomed.Wait()
				w.want("done", w.done(), 1)
				w.want("shown", w.screen.texts(), []string{scaled})
			})
		})
	}
}
