package archive

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"strings"

	"footplate/fleet"
)

// exportFormat names the form of an export: lines of JSON, the first a header,
// then one for each entry, the last a trailer.
const exportFormat = "footplate-audit/1"

// header is the first line of an export.
type header struct {
	Format    string        `json:"format"`
	ClusterID string        `json:"cluster_id"`
	From      fleet.EntryNo `json:"from"`
	To        fleet.EntryNo `json:"to"`
	// Only is set when entries between From and To were left out.
	Only *selection `json:"only,omitempty"`
}

// selection is the part of a Filter that leaves out entries in between.
type selection struct {
	By       fleet.Principal    `json:"by,omitempty"`
	Op       string             `json:"op,omitempty"`
	Outcome  fleet.EntryOutcome `json:"outcome,omitempty"`
	Incident string             `json:"incident,omitempty"`
	Object   string             `json:"object,omitempty"`
	Text     string             `json:"text,omitempty"`
}

// trailer is the last line of an export.
type trailer struct {
	Count  int           `json:"count"`
	First  fleet.EntryNo `json:"first"`
	Last   fleet.EntryNo `json:"last"`
	Head   string        `json:"head"`   // hash of the last entry
	SHA256 string        `json:"sha256"` // of all bytes before this line
}

// Export writes the entries that f selects in the order of their numbers, in a
// form that Verify checks. It is refused while the archive lacks any of them.
func (a *Archive) Export(ctx context.Context, w io.Writer, f Filter) error {
	if f.Limit != 0 || f.Newest {
		return fleet.Invalidf("an export has no limit and no order").WithHint("give a range of numbers or times")
	}
	if err := a.settle(ctx); err != nil {
		return fmt.Errorf("export audit archive: %w", err)
	}
	a.mu.Lock()
	f.From = max(f.From, a.begin)
	a.mu.Unlock()
	from, to, err := a.db.bounds(ctx, f)
	if err != nil {
		return fmt.Errorf("export audit archive: %w", err)
	}
	if from > to {
		from, to = 0, 0
	} else if err := a.complete(from, to); err != nil {
		return err
	}
	h := header{Format: exportFormat, ClusterID: a.cluster, From: from, To: to}
	if f.selective() {
		h.Only = &selection{f.By, f.Op, f.Outcome, f.Incident, f.Object, f.Text}
	}
	out := summed{w: bufio.NewWriterSize(w, 64<<10), sum: sha256.New()}
	if err := out.line(h); err != nil {
		return err
	}
	var t trailer
	if to > 0 {
		f.From, f.To = from, to // what is appended from here on is not part of it
		for row, err := range a.db.rows(ctx, f) {
			if err != nil {
				return err
			}
			if h.Only != nil {
				if e, why := decode(row.line); why == "" && !f.holds(&e) {
					continue
				}
			}
			if t.Count == 0 {
				t.First = row.n
			}
			t.Count++
			t.Last, t.Head = row.n, lineHash(row.line)
			out.write(row.line)
			out.write([]byte{'\n'})
			if out.err != nil {
				break
			}
		}
	}
	t.SHA256 = hex.EncodeToString(out.sum.Sum(nil))
	if err := out.line(t); err != nil {
		return err
	}
	return out.flush()
}

// lineHash returns the hash in a line that encode wrote: its last field.
func lineHash(line []byte) string {
	_, hash, _ := strings.Cut(string(line[max(0, len(line)-128):]), `"hash":"`)
	return strings.TrimSuffix(hash, `"}`)
}

// complete returns an error when the archive lacks entries of the range.
func (a *Archive) complete(from, to fleet.EntryNo) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if from = max(from, a.begin); to < from || a.have.covers(from, to) {
		return nil
	}
	first, last := a.have.gap(to)
	return fleet.Unavailablef("the audit archive of this node does not have entries %d to %d yet", max(first, from), last).
		WithHint("it is getting them from its peers: ask again, or ask another node")
}

// summed writes and sums up what it writes. The first error stays.
type summed struct {
	w   *bufio.Writer
	sum hash.Hash
	err error
}

func (s *summed) write(b []byte) {
	if s.err == nil {
		s.sum.Write(b)
		_, s.err = s.w.Write(b)
	}
}

func (s *summed) line(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("export audit archive: %w", err)
	}
	s.write(append(b, '\n'))
	return nil
}

func (s *summed) flush() error {
	if s.err == nil {
		s.err = s.w.Flush()
	}
	if s.err != nil {
		return fmt.Errorf("export audit archive: %w", s.err)
	}
	return nil
}
