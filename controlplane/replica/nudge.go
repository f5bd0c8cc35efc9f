package replica

import (
	"context"
	"log/slog"
	"time"

	"github.com/hashicorp/raft"
)

// nudge makes a follower notice a dead leader when HeartbeatTimeout has passed
// since it last heard of it.
//
// By itself raft looks on a timer of one to two timeouts that heartbeats do
// not reset, so it notices after one to three. ReloadConfig with a shorter
// HeartbeatTimeout makes it look at once, and the new value is what it compares
// with: so the timeout is set back to what it was, which raft does not act on,
// and then to a microsecond less. (With an old leader that has not noticed
// either, this needs LeaderLeaseTimeout to be shorter than HeartbeatTimeout.)
//
// All followers notice at about the same time then; see canvass.
func nudge(ctx context.Context, ra *raft.Raft, timeout time.Duration, log *slog.Logger) {
	began := time.Now()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		wait := timeout
		if ra.State() == raft.Follower {
			heard := ra.LastContact()
			if heard.Before(began) {
				heard = began
			}
			wait = time.Until(heard.Add(timeout))
			if wait <= 0 {
				rc := ra.ReloadableConfig()
				rc.HeartbeatTimeout = timeout
				err := ra.ReloadConfig(rc)
				if err == nil {
					rc.HeartbeatTimeout = timeout - time.Microsecond
					err = ra.ReloadConfig(rc)
				}
				if err != nil {
					log.Warn("looking for a leader", "err", err)
				}
				wait = timeout
			}
		}
		timer.Reset(max(wait, time.Millisecond))
	}
}
