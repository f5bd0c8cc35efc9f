package replica

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// voter is a transport to a node that grants or refuses pre-votes.
type voter struct {
	transport
	asked   int
	consent func(asked int) bool
}

func (v *voter) RequestPreVote(_ raft.ServerID, _ raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	v.asked++
	resp.Term = args.Term
	resp.Granted = v.consent(v.asked)
	return nil
}

func request(from string, term, logTerm, logIndex uint64) raft.RequestPreVoteRequest {
	return raft.RequestPreVoteRequest{
		RPCHeader: raft.RPCHeader{ID: []byte(from)}, Term: term, LastLogTerm: logTerm, LastLogIndex: logIndex,
	}
}

// ask asks the node of on behalf of from, which has entry 10 of term 4 last, and
// returns what came of it and how long it took.
func ask(c *canvass, from, of string) (granted bool, took time.Duration) {
	began := time.Now()
	req := request(from, 5, 4, 10)
	var resp raft.RequestPreVoteResponse
	if err := c.RequestPreVote(raft.ServerID(of), "", &req, &resp); err != nil {
		panic(err)
	}
	return resp.Granted, time.Since(began)
}

// A node that has just asked for a vote itself no longer holds on to the old
// leader: then it is worth asking again.
func TestRefusedCandidateAsksAgainWhenRefuserAsks(t *testing.T) {
	for _, tc := range []struct {
		name  string
		pleas func(c *canvass)
		want  bool
		took  time.Duration
		asked int
	}{
		{"it never asks", func(*canvass) {}, false, beat, 1},
		{"another asks", func(c *canvass) { c.hear(request("n3", 5, 4, 9)) }, false, beat, 1},
		{"it asks", func(c *canvass) { c.hear(request("n2", 5, 4, 9)) }, true, 30 * time.Millisecond, 2},
		{"the node stops", func(c *canvass) { close(c.stop) }, false, 30 * time.Millisecond, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := &voter{consent: func(asked int) bool { return asked > 1 }}
				c := newCanvass(v, beat)
				c.hear(request("n2", 4, 3, 2)) // long ago: that is no sign
				time.AfterFunc(30*time.Millisecond, func() { tc.pleas(c) })
				granted, took := ask(c, "n1", "n2")
				if granted != tc.want || took != tc.took || v.asked != tc.asked {
					t.Errorf("granted %t after %s, asked %d times; want %t, %s, %d", granted, took, v.asked, tc.want, tc.took, tc.asked)
				}
			})
		})
	}
}

// A refusal that was on its way when the refuser asked counts as older.
func TestRefusalCrossesPlea(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &voter{}
		c := newCanvass(v, beat)
		v.consent = func(asked int) bool {
			if asked == 1 {
				c.hear(request("n2", 5, 4, 9))
			}
			return asked > 1
		}
		if granted, took := ask(c, "n1", "n2"); !granted || took != 0 {
			t.Errorf("granted %t after %s", granted, took)
		}
	})
}

// Two candidates that refuse each other and wait for each other must not ask
// for ever: each question is a reason for the next.
func TestCandidatesDoNotAskForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &voter{}
		c := newCanvass(v, beat)
		v.consent = func(asked int) bool {
			if asked < 100 {
				c.hear(request("n2", 5, 4, 9))
			}
			return false
		}
		if granted, _ := ask(c, "n1", "n2"); granted || v.asked != 2 {
			t.Errorf("granted %t, asked %d times", granted, v.asked)
		}
	})
}

// Of two that may both stand for election the one with the lower id does.
func TestOnlyOneOfTwoCandidatesStands(t *testing.T) {
	const grace, hold = beat / 50, beat / 2
	for _, tc := range []struct {
		name  string
		heard *raft.RequestPreVoteRequest
		after time.Duration // it was heard before
		from  string
		took  time.Duration
	}{
		{"alone, lowest", nil, 0, "n1", 0},
		{"alone, not lowest", nil, 0, "n3", grace},
		{"lower asks with equal log", new(request("n2", 5, 4, 10)), 0, "n3", grace + hold},
		{"lower asks with longer log", new(request("n2", 5, 4, 11)), 0, "n3", grace + hold},
		{"lower asks with log of a later term", new(request("n2", 5, 5, 2)), 0, "n3", grace + hold},
		{"lower asks with shorter log", new(request("n2", 5, 4, 9)), 0, "n3", grace},
		{"lower asks with log of an earlier term", new(request("n2", 5, 3, 99)), 0, "n3", grace},
		{"lower asked for another election", new(request("n2", 4, 4, 10)), 0, "n3", grace},
		{"lower asked long ago", new(request("n2", 5, 4, 10)), beat, "n3", grace},
		{"higher asks with longer log", new(request("n2", 5, 4, 11)), 0, "n1", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCanvass(&voter{consent: func(int) bool { return true }}, beat)
				if tc.heard != nil {
					c.hear(*tc.heard)
				}
				wait := time.NewTimer(tc.after)
				<-wait.C
				if granted, took := ask(c, tc.from, "n2"); !granted || took != tc.took {
					t.Errorf("granted %t after %s, want %s", granted, took, tc.took)
				}
			})
		})
	}
}
