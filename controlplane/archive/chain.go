package archive

import (
	"fmt"

	"footplate/fleet"
)

// Encode returns e as the one line of JSON, without a newline, in which an
// entry is kept, exported and verified.
func Encode(e *fleet.Entry) ([]byte, error) { return encode(e) }

// Decode reads a line that Encode wrote, and says what is wrong with any other.
func Decode(line []byte) (e fleet.Entry, wrong string) { return decode(line) }

// Chain verifies the entries of a log that is kept somewhere else, one after
// the other, by the rules of VerifyChain.
type Chain struct {
	chain  chain
	before Anchor
}

// NewChain makes a Chain whose first entry has the number after before, which
// it must follow; the zero Anchor is the beginning of the log.
func NewChain(cluster string, before Anchor, anchors ...Anchor) *Chain {
	return &Chain{
		chain:  chain{next: before.N + 1, anchors: anchors, report: Report{ClusterID: cluster, Last: before.N, Head: before.Hash}},
		before: before,
	}
}

// Check takes the next entry and says what is wrong with it. again reports
// whether a number turns up further on; it is asked at the first fault only.
func (c *Chain) Check(e *fleet.Entry, again func(fleet.EntryNo) bool) *Fault {
	if c.chain.report.Count == 0 && c.before.Hash != "" && e.N == c.before.N+1 && e.Prev != c.before.Hash && e.Unsound() == "" {
		return &Fault{Wrong: Swapped, N: e.N, Text: fmt.Sprintf("entry %d does not follow entry %d", e.N, c.before.N)}
	}
	return c.chain.check(e, again)
}

// Report returns what was verified so far, with the anchors that were not met.
func (c *Chain) Report() Report { return c.chain.end() }
