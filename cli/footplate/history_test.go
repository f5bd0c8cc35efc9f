package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"footplate/controlplane/catalog"
	"footplate/controlplane/client"
	"footplate/fleet"

	"github.com/anishathalye/porcupine"
)

func readJSON(file string, into any) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

// register is one number that people set and read: the slots of an org.
type register struct {
	org   int
	write bool
	value int
}

// registers says what a history of registers may look like: each is as if it
// were one number in one place.
var registers = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		by := map[int][]porcupine.Operation{}
		for _, o := range history {
			r := o.Input.(register)
			by[r.org] = append(by[r.org], o)
		}
		var out [][]porcupine.Operation
		for _, h := range by {
			out = append(out, h)
		}
		return out
	},
	Init: func() any { return 1 },
	Step: func(state, in, out any) (bool, any) {
		r := in.(register)
		if r.write {
			return true, r.value
		}
		return out.(int) == state.(int), state
	},
	DescribeOperation: func(in, out any) string {
		r := in.(register)
		if r.write {
			return fmt.Sprintf("set org %d to %d", r.org, r.value)
		}
		return fmt.Sprintf("org %d is %v", r.org, out)
	},
}

// TestHistory: people set and read through every node, while leaders are killed
// and nodes cut off. What they saw is as if there were one copy of everything.
func TestHistory(t *testing.T) {
	p := startPlant(t, plantConfig{nodes: 3, hosts: 0, slots: 1, fence: "10s", suspect: "5s"})
	const orgs = 3
	for o := range orgs {
		p.must("org", "set", fmt.Sprintf("r%d", o), "--slots", "1")
	}
	long := 12 * time.Second
	if rounds() > 1 {
		long = time.Minute
	}
	ops := catalog.All()
	began := time.Now()
	now := func() int64 { return int64(time.Since(began)) }
	var mu sync.Mutex
	var history []porcupine.Operation
	var stop atomic.Bool
	var all sync.WaitGroup
	var next, doubtful, refused atomic.Int64
	next.Store(1)
	for w := range 6 {
		// Each sees one node alone, and does not try again by itself.
		c, err := client.New(client.Config{
			Addrs: []string{"http://" + p.nodes[w%3].api}, Token: p.admin, Via: "test", Retry: time.Nanosecond,
		})
		if err != nil {
			t.Fatal(err)
		}
		random := rand.New(rand.NewPCG(uint64(w), 1))
		all.Go(func() {
			for !stop.Load() {
				r := register{org: random.IntN(orgs), write: random.IntN(2) == 0}
				o := porcupine.Operation{ClientId: w, Input: r}
				line := "org list"
				if r.write {
					r.value = int(next.Add(1))
					o.Input = r
					line = fmt.Sprintf("org set r%d --slots %d", r.org, r.value)
				}
				parsed, err := ops.Parse(line)
				if err != nil {
					t.Error(err)
					return
				}
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				o.Call = now()
				if r.write {
					_, err = c.Do(ctx, parsed.Op, parsed.Args, client.Options{})
				} else {
					var raw json.RawMessage
					if raw, _, err = c.Query(ctx, parsed.Op, parsed.Args, false); err == nil {
						var rows []catalog.OrgRow
						if err = json.Unmarshal(raw, &rows); err != nil {
							t.Error(err)
						}
						for _, row := range rows {
							if row.Name == fleet.OrgName(fmt.Sprintf("r%d", r.org)) {
								o.Output = row.Slots
							}
						}
					}
				}
				o.Return = now()
				cancel()
				switch {
				case err == nil:
				case r.write && fleet.CodeOf(err) == fleet.CodeUnknown:
					o.Return = math.MaxInt64 // it may take effect at any time, or never
					doubtful.Add(1)
				case r.write && fleet.CodeOf(err) == fleet.CodeUnavailable:
					// The claim is that nothing was done: were it false, a read would show it.
					refused.Add(1)
					continue
				case r.write:
					t.Errorf("org set: %v", err)
					continue
				default:
					continue
				}
				mu.Lock()
				history = append(history, o)
				mu.Unlock()
			}
		})
	}
	// The faults, one after the other, until the time is over.
	random := rand.New(rand.NewPCG(7, 7))
	for time.Since(began) < long {
		victim := p.nodes[random.IntN(3)]
		switch random.IntN(3) {
		case 0:
			victim = p.leader()
			p.kill(victim)
			p.start(victim)
		case 1:
			victim = p.leader()
			victim.proxy.set(true)
		case 2:
			victim.proxy.set(true)
		}
		until := time.Now().Add(time.Duration(500+random.IntN(1500)) * time.Millisecond)
		waitFor(t, 10*time.Second, "the fault to last", func() bool { return time.Now().After(until) })
		for _, n := range p.nodes {
			n.proxy.set(false)
		}
		p.leader()
	}
	stop.Store(true)
	all.Wait()
	t.Logf("%d operations, %d of unknown outcome, %d refused", len(history), doubtful.Load(), refused.Load())
	if len(history) < 100 {
		t.Errorf("only %d operations came through", len(history))
	}
	switch result, info := porcupine.CheckOperationsVerbose(registers, history, time.Minute); result {
	case porcupine.Illegal:
		file, err := os.CreateTemp("", "footplate-history-*.html")
		if err == nil {
			err = porcupine.Visualize(registers, info, file)
			file.Close()
		}
		t.Errorf("the history is not linearizable; see %s (%v)", file.Name(), err)
	case porcupine.Unknown:
		t.Error("the history could not be checked within a minute")
	}
}
