package agent

import (
	"context"
	"time"

	"footplate/controlplane/api"
	"footplate/fleet"
	"footplate/fleet/agent/attempt"
)

const (
	// copies is how many nodes must hold a chunk before it is no longer ours to
	// keep; all, where there are fewer.
	copies = 2
	// batchBytes bounds the output in one call. With JSON around it a call stays
	// well below the megabyte that a node takes.
	batchBytes = 256 << 10
	// shipAgain is how often a log is looked at although nobody said that it
	// grew, and the longest wait between two tries.
	shipAgain = 2 * time.Second
	// shipSlow is how long a node may take before another is asked as well.
	shipSlow = time.Second
	// shipPatience is how long it may fail before somebody is told.
	shipPatience = 5 * time.Second
	// keepLog bounds how long a log is kept that no two nodes want to take.
	keepLog = time.Hour
)

// ship hands a log over, chunk by chunk, until two nodes hold the final one. It
// returns early when work ends, or a node says that it will never take it.
func (a *Agent) ship(work context.Context, id fleet.AttemptID, spool *attempt.Spool, more <-chan struct{}) {
	var next uint64
	first := int(id) // spreads the logs over the nodes
	wait := 50 * time.Millisecond
	var failing time.Time
	complained := false
	for {
		chunks, err := spool.ReadFrom(next, batchBytes)
		if err != nil {
			a.log.Error("the log of an attempt is damaged; the rest of it is given up", "attempt", id, "err", err)
			return
		}
		if len(chunks) == 0 {
			select {
			case <-work.Done():
				return
			case <-more:
			case <-time.After(shipAgain):
			}
			continue
		}
		body := api.Chunks{Host: a.cfg.Host, Chunks: make([]api.Chunk, len(chunks))}
		for i, c := range chunks {
			body.Chunks[i] = api.Chunk{Attempt: id, N: int(c.N), At: c.At, Data: c.Data, Final: c.Final}
		}
		var refused error
		first, refused, err = a.shipTo(work, body, first)
		switch {
		case refused != nil:
			a.log.Error("the log of an attempt is refused; the rest of it is given up", "attempt", id, "err", refused)
			return
		case err != nil:
			if failing.IsZero() {
				failing = time.Now()
			}
			if !complained && time.Since(failing) > shipPatience {
				complained = true
				a.log.Warn("the log of an attempt cannot be handed over now", "attempt", id, "err", err)
			}
			if time.Since(failing) > keepLog {
				a.log.Error("the log of an attempt is given up: no two nodes took it", "attempt", id, "after", keepLog)
				return
			}
			select {
			case <-work.Done():
				return
			case <-time.After(wait):
			}
			wait = min(2*wait, shipAgain)
			continue
		}
		wait, failing, complained = 50*time.Millisecond, time.Time{}, false
		last := chunks[len(chunks)-1]
		next = last.N + 1
		if last.Final {
			return
		}
	}
}

// shipTo sends a batch to as many nodes as must hold it, beginning with the one
// at first, and returns where to begin the next time: a node that failed is
// passed over. refused is the word of a node that will never take it.
func (a *Agent) shipTo(work context.Context, body api.Chunks, first int) (next int, refused, err error) {
	var nodes []api.NodeAddr
	for _, n := range *a.nodes.Load() {
		if n.API != "" {
			nodes = append(nodes, n)
		}
	}
	if len(nodes) == 0 {
		return first, nil, fleet.Unavailablef("no node is known")
	}
	// Seeds may be one node by two names, or fewer than there are: then the
	// membership is not known yet, and neither is how many must hold it.
	for _, n := range nodes {
		if n.Node == "" {
			return first, nil, fleet.Unavailablef("the control plane has not been heard yet")
		}
	}
	need := min(copies, len(*a.nodes.Load()))
	errs := make(chan error, len(nodes))
	sent, held := 0, 0
	send := func() {
		n := nodes[(first+sent)%len(nodes)]
		sent++
		a.life.Go(func() {
			ctx, cancel := context.WithTimeout(work, logsTimeout)
			defer cancel()
			errs <- a.call.post(ctx, a.call.logs, n.API, "/v1/agent.logs", body, nil)
		})
	}
	for range min(need, len(nodes)) {
		send()
	}
	next = first
	slow := time.NewTicker(shipSlow)
	defer slow.Stop()
	for got := 0; got < sent; {
		var e error
		select {
		case e = <-errs:
			got++
		case <-slow.C:
			// A node that hangs is not waited for while another may take it.
			next = first + 1
			if sent < len(nodes) {
				send()
			}
			continue
		}
		switch fleet.CodeOf(e) {
		case "":
			if held++; held >= need {
				return next, nil, nil
			}
			continue
		case fleet.CodeInvalid, fleet.CodeConflict:
			// Of these bytes nothing better will come.
			refused = e
		}
		err = e
		next = first + 1
		if sent < len(nodes) {
			send()
		}
	}
	if held > 0 {
		refused = nil // some node takes it: another may follow
	}
	if err == nil {
		err = fleet.Unavailablef("%d of %d nodes took it, and %d must", held, len(nodes), need)
	}
	return next, refused, err
}

// shipOld hands over what is left of the log of an attempt of an earlier
// incarnation, and removes it.
func (a *Agent) shipOld(work context.Context, id fleet.AttemptID) {
	spool, err := attempt.Log(a.attemptsDir(), id)
	if err != nil {
		a.log.Warn("the log of an old attempt cannot be read", "attempt", id, "err", err)
	} else {
		a.ship(work, id, spool, nil)
		spool.Close()
		if work.Err() != nil {
			return
		}
	}
	if err := attempt.Forget(a.attemptsDir(), id); err != nil {
		a.log.Warn("remove what is left of an old attempt", "attempt", id, "err", err)
	}
}
