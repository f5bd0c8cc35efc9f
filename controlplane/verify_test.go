package controlplane

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/archive"
	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
)

func chainOf(n int) []fleet.Entry {
	out := make([]fleet.Entry, n)
	prev := ""
	for i := range out {
		out[i] = fleet.Entry{N: fleet.EntryNo(i + 1), At: fleet.Time(i + 1), By: "alice", Op: "org set", Outcome: fleet.EntryDone, Text: "set", Salt: fmt.Sprintf("%032x", i)}
		out[i].Seal(prev)
		prev = out[i].Hash
	}
	return out
}

// peerOf is a node that answers with these entries, and cannot read the one
// with the number damaged.
func peerOf(t *testing.T, st api.PeerStatus, entries []fleet.Entry, damaged fleet.EntryNo) api.NodeAddr {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/peer.status" {
			_ = json.NewEncoder(w).Encode(st)
			return
		}
		from, _ := strconv.ParseUint(r.FormValue("from"), 10, 64)
		to, _ := strconv.ParseUint(r.FormValue("to"), 10, 64)
		if from <= uint64(damaged) && uint64(damaged) <= to {
			w.WriteHeader(http.StatusInternalServerError)
			_ = json.NewEncoder(w).Encode(api.Problem{Code: fleet.CodeInternal, Detail: "internal error 17"})
			return
		}
		got := []fleet.Entry{}
		for _, e := range entries {
			if uint64(e.N) >= from && uint64(e.N) <= to {
				got = append(got, e)
			}
		}
		_ = json.NewEncoder(w).Encode(got)
	}))
	t.Cleanup(srv.Close)
	return api.NodeAddr{Node: "n2", API: srv.URL}
}

// TestVerifyPeer: another node is checked by its entries, whole or, where there
// are too many, the newest whole and pieces of the rest; the first bad one is
// named.
func TestVerifyPeer(t *testing.T) {
	const total = 3000
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	entries := chainOf(total)
	a, err := archive.Open(t.TempDir(), "c1")
	if err != nil {
		t.Fatal(err)
	}
	runCtx, stop := context.WithCancel(ctx)
	ended := make(chan error)
	go func() { ended <- a.Run(runCtx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		_ = a.Close()
	})
	a.Append(slices.Clone(entries))
	w := &world{
		node: "n1", archive: a,
		peers: newPeers(Config{Node: "n1"}, "c1", func() []api.NodeAddr { return nil }, slog.New(slog.DiscardHandler)),
	}
	view := &state.View{Meta: state.Meta{Index: 9000, Entry: total, Head: entries[total-1].Hash}}
	head := []archive.Anchor{{N: total, Hash: entries[total-1].Hash}}
	up := api.PeerStatus{Applied: 9000, Archive: total}

	edited := slices.Clone(entries)
	edited[1234].Text = "unset"
	forged := slices.Clone(entries) // the old part made anew, the newest as they were
	prev := ""
	for i := range forged[:2900] {
		forged[i].Text = "unset"
		forged[i].Seal(prev)
		prev = forged[i].Hash
	}
	anew := slices.Clone(forged) // and these sealed upon it
	for i := 2900; i < total; i++ {
		anew[i].Seal(anew[i-1].Hash)
	}
	for _, row := range []struct {
		name    string
		status  api.PeerStatus
		entries []fleet.Entry
		damaged fleet.EntryNo
		whole   fleet.EntryNo
		count   int // of entries, at least
		want    string
		note    string
	}{
		{"whole", up, entries, 0, total, total, "", ""},
		{"too many", up, entries, 0, 100, 2000, "", "the newest 100 whole"},
		{"behind", api.PeerStatus{Applied: 8000, Archive: 2000}, entries[:2000], 0, total, 2000, "", "1000 entries behind"},
		{"edited", up, edited, 0, total, 0, "edited: entry 1235", ""},
		{"one missing", up, slices.Delete(slices.Clone(entries), 999, 1000), 0, total, 0, "missing: entry 1000 is not there", ""},
		{"cut off", up, entries[:2500], 0, total, 0, "truncated: entries 2501 to 3000 are not there", ""},
		{"empty", up, nil, 0, total, 0, "truncated: entries 1 to 3000", ""},
		{"damaged", up, entries, 777, total, 0, "bad JSON: entry 777 cannot be read there", ""},
		{"the old part made anew", up, forged, 0, total, 0, "swapped: entry 2901", ""},
		{"the old part made anew, among too many", up, forged, 0, 100, 0, "entry", ""},
		{"all made anew", up, anew, 0, total, 0, "rewritten: entry 3000", ""},
		{"all made anew, among too many", up, anew, 0, 100, 0, "entry", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := w.verifyPeer(ctx, peerOf(t, row.status, row.entries, row.damaged), view, head, row.whole)
			switch {
			case row.want == "" && (c.Err != nil || c.Entries < row.count):
				t.Errorf("%+v", c)
			case row.want != "" && (c.Err == nil || c.Err.Code != fleet.CodeConflict || !strings.Contains(c.Err.Msg, row.want)):
				t.Errorf("%v, not %q", c.Err, row.want)
			}
			if !strings.Contains(c.Note, row.note) || row.note == "" && c.Note != "" && row.whole == total {
				t.Errorf("the note is %q", c.Note)
			}
		})
	}
	var silent op.Checked
	if silent = w.verifyPeer(ctx, api.NodeAddr{Node: "n3", API: "http://127.0.0.1:1"}, view, head, total); fleet.CodeOf(silent.Err) != fleet.CodeUnavailable {
		t.Errorf("a node that does not answer: %+v", silent)
	}
}
