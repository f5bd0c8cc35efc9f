package catalog

import (
	"context"
	"fmt"
	"io"

	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// AuditTailArgs says how much of the record.
type AuditTailArgs struct {
	Limit int             `json:"limit" flag:"limit" default:"20" help:"at most this many entries"`
	By    fleet.Principal `json:"by" flag:"by" help:"only of this principal"`
	Op    string          `json:"op" flag:"op" help:"only of this operation"`
}

// AuditTail shows the newest entries.
var AuditTail = op.Query(op.Spec{
	Name:     "audit tail",
	Summary:  "show the newest entries of the record",
	Role:     fleet.Viewer,
	Examples: []string{"audit tail", "audit tail --limit 100 --by alice"},
}, func(ctx context.Context, env op.Env, a AuditTailArgs) ([]EntryRow, error) {
	entries, err := env.World.Entries(ctx, op.EntryFilter{By: a.By, Op: a.Op, Limit: a.Limit, Newest: true})
	if err != nil {
		return nil, err
	}
	rows := make([]EntryRow, len(entries))
	for i, e := range entries {
		rows[len(entries)-1-i] = EntryRow{e.N, e.At, e.By, e.Via, e.Op, e.Outcome, e.Text, e.Reason}
	}
	return rows, nil
})

// EntryRow is an entry as lists show it.
type EntryRow struct {
	N       fleet.EntryNo      `json:"n" col:"ENTRY" id:"true"`
	At      fleet.Time         `json:"at" col:"AT"`
	By      fleet.Principal    `json:"by" col:"BY"`
	Via     string             `json:"via" col:"VIA" wide:"true"`
	Op      string             `json:"op" col:"OPERATION"`
	Outcome fleet.EntryOutcome `json:"outcome" col:"OUTCOME"`
	Text    string             `json:"text" col:"WHAT"`
	Reason  string             `json:"reason,omitempty" col:"REASON"`
}

// AuditShowArgs names an entry.
type AuditShowArgs struct {
	Entry fleet.EntryNo `json:"entry" arg:"ENTRY" required:"true" help:"its number"`
}

// AuditShow shows one entry in full.
var AuditShow = op.Query(op.Spec{
	Name:     "audit show",
	Summary:  "show one entry of the record in full",
	Role:     fleet.Viewer,
	Examples: []string{"audit show 12"},
}, func(ctx context.Context, env op.Env, a AuditShowArgs) (EntryDetail, error) {
	entries, err := env.World.Entries(ctx, op.EntryFilter{From: a.Entry, To: a.Entry, Limit: 1})
	if err != nil {
		return EntryDetail{}, err
	}
	if len(entries) == 0 {
		return EntryDetail{}, fleet.NotFoundf("there is no entry %d", a.Entry).WithHint("footplate audit tail")
	}
	return EntryDetail{Entry: entries[0], Intact: entries[0].Intact(), Delivery: delivery(env.View, a.Entry)}, nil
})

// EntryDetail is an entry in full.
type EntryDetail struct {
	fleet.Entry
	Intact   bool   `json:"intact" help:"its hash fits"`
	Delivery string `json:"delivery" help:"to the channel"`
}

// AuditExportArgs selects what to export.
type AuditExportArgs struct {
	From  fleet.EntryNo `json:"from" flag:"from" help:"the first entry; the oldest when left out"`
	To    fleet.EntryNo `json:"to" flag:"to" help:"the last entry; the newest when left out"`
	Since fleet.Time    `json:"since" flag:"since" help:"only from this time on"`
	Until fleet.Time    `json:"until" flag:"until" help:"only up to this time"`
}

// AuditExport writes the record as lines of JSON with a trailer, for "audit verify".
var AuditExport = op.Stream(op.Spec{
	Name:     "audit export",
	Summary:  "write the record as lines of JSON, with a trailer that audit verify checks",
	Role:     fleet.Viewer,
	Examples: []string{"audit export", "audit export --from 1 --to 500"},
}, nil, func(ctx context.Context, env op.Env, a AuditExportArgs, w io.Writer) error {
	return env.World.ExportEntries(ctx, op.EntryFilter{From: a.From, To: a.To, Since: a.Since, Until: a.Until}, w)
})

// AuditVerify checks the archive of the answering node.
var AuditVerify = op.Query(op.Spec{
	Name:     "audit verify",
	Summary:  "prove that no entry of the record is missing or altered",
	Long:     "Without a file, the node that answers checks its own archive against the chain in\nthe replicated state. With a file, the CLI checks an export, offline.",
	Role:     fleet.Viewer,
	Examples: []string{"audit verify"},
}, func(ctx context.Context, env op.Env, _ struct{}) (Verified, error) {
	n, err := env.World.VerifyEntries(ctx)
	if err != nil {
		return Verified{}, err
	}
	return Verified{Node: env.Node, Entries: n, Head: env.View.Head, Text: fmt.Sprintf("the record is whole: %s, each fits the one before it", plural(n, "entry", "entries"))}, nil
})

// Verified is a successful check.
type Verified struct {
	Node    fleet.NodeID `json:"node"`
	Entries int          `json:"entries"`
	Head    string       `json:"head" help:"hash of the newest entry"`
	Text    string       `json:"text"`
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// OutboxDeliverArgs says how far the console's channel was delivered.
type OutboxDeliverArgs struct {
	Upto uint64 `json:"upto"` // number of the last parcel
}

// OutboxDeliver delivers parcels to the channel of the console, in order. The
// channel is part of the state, so delivery and its record are one step: each
// entry arrives once.
var OutboxDeliver = op.Internal(op.Spec{
	Name: "outbox deliver", Summary: "deliver to the channel of the console", Role: fleet.System,
}, func(tx *state.Tx, _ op.Meta, a OutboxDeliverArgs) (op.Result, error) {
	var parcels []state.Parcel
	for n, p := range tx.Outbox.All() {
		if uint64(n) > a.Upto {
			break
		}
		parcels = append(parcels, p)
	}
	for _, p := range parcels {
		tx.Outbox.Delete(fleet.EntryNo(p.N))
		last, ok := tx.Channel.Get(fleet.EntryNo(tx.Line))
		// A run of the same operation becomes one line, as long as nothing came between.
		if ok && p.Show == state.ShowGroup && last.Op == p.Line.Op && last.By == p.Line.By && last.Outcome == p.Line.Outcome &&
			last.Reason == p.Line.Reason && p.Line.At.Sub(last.At) < state.LineGrows && last.Last+1 == p.Line.First {
			last.Count++
			last.Last = p.Line.Last
			last.Text = p.Line.Text
			tx.Channel.Put(fleet.EntryNo(last.N), last)
			continue
		}
		tx.Line++
		line := p.Line
		line.N = tx.Line
		tx.Channel.Put(fleet.EntryNo(line.N), line)
		if line.N > state.ChannelKeep {
			tx.Channel.Delete(fleet.EntryNo(line.N - state.ChannelKeep))
		}
	}
	return op.Result{Text: fmt.Sprintf("delivered %d", len(parcels)), Quiet: true}, nil
})
