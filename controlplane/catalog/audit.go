package catalog

import (
	"context"
	"fmt"
	"io"
	"strings"

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
	for i := range entries {
		rows[len(entries)-1-i] = entryRow(&entries[i])
	}
	return rows, nil
})

// EntryRow is an entry as lists show it.
type EntryRow struct {
	N        fleet.EntryNo      `json:"n" col:"ENTRY" id:"true"`
	At       fleet.Time         `json:"at" col:"AT"`
	By       fleet.Principal    `json:"by" col:"BY"`
	Via      string             `json:"via" col:"VIA" wide:"true"`
	Op       string             `json:"op" col:"OPERATION"`
	Outcome  fleet.EntryOutcome `json:"outcome" col:"OUTCOME"`
	Incident string             `json:"incident,omitempty" col:"INCIDENT" wide:"true"`
	Text     string             `json:"text" col:"WHAT"`
	Reason   string             `json:"reason,omitempty" col:"REASON"`
}

func entryRow(e *fleet.Entry) EntryRow {
	r := EntryRow{e.N, e.At, e.By, e.Via, e.Op, e.Outcome, e.Incident, e.Text, e.Reason}
	if _, gone := e.Erased["by"]; gone {
		r.By = state.Erased
	}
	if _, gone := e.Erased["text"]; gone {
		r.Text = state.Erased
	}
	if _, gone := e.Erased["reason"]; gone {
		r.Reason = state.Erased
	}
	return r
}

// EntryWhere selects entries of the record.
type EntryWhere struct {
	Since    Moment             `json:"since" flag:"since" help:"only from this moment on: a time, a day, or how long ago (\"2h ago\", 2h)"`
	Until    Moment             `json:"until" flag:"until" help:"only before this moment"`
	By       fleet.Principal    `json:"by" flag:"by" help:"only of this principal"`
	Op       string             `json:"op" flag:"op" help:"only of this operation, or of all of a noun's"`
	Object   string             `json:"object" flag:"object" help:"only where this name stands in the arguments or the text: a host, a pool, an org, or with its noun (\"build 12\")"`
	Outcome  fleet.EntryOutcome `json:"outcome" flag:"outcome" enum:"done,failed,refused,skipped" help:"only with this outcome: done, failed, refused or skipped"`
	Incident string             `json:"incident" flag:"incident" help:"only of this incident"`
	Text     string             `json:"text" flag:"text" help:"only with this in the text, reason, arguments, operation or principal, in any case"`
}

// filter is the selection as it is at now.
func (w EntryWhere) filter(now fleet.Time) op.EntryFilter {
	return op.EntryFilter{
		Since: w.Since.Of(now), Until: w.Until.Of(now), By: w.By, Op: w.Op, Object: w.Object, Outcome: w.Outcome, Incident: w.Incident, Text: w.Text,
	}
}

// AuditSearchArgs selects entries.
type AuditSearchArgs struct {
	EntryWhere
	Limit int `json:"limit" flag:"limit" default:"50" help:"at most this many entries"`
}

// searchMost bounds one answer; an export has no bound.
const searchMost = 10_000

// Validate checks the limit.
func (a AuditSearchArgs) Validate() error {
	if a.Limit < 1 || a.Limit > searchMost {
		return fleet.Invalidf("--limit is %d; it must lie between 1 and %d", a.Limit, searchMost).WithHint("footplate audit export writes everything")
	}
	return nil
}

// AuditSearch finds entries.
var AuditSearch = op.Query(op.Spec{
	Name:     "audit search",
	Summary:  "find entries of the record, the newest first",
	Long:     "Times without a zone are UTC. What is given by several flags must hold all at once.",
	Role:     fleet.Viewer,
	Examples: []string{"audit search --since '2h ago' --by alice", "audit search --object linux-4 --since 2026-11-21 --until '2026-11-21 06:00'", "audit search --op pool --outcome refused", "audit search --incident I7 --text drain -o csv"},
}, func(ctx context.Context, env op.Env, a AuditSearchArgs) ([]EntryRow, error) {
	f := a.filter(env.Now)
	f.Limit, f.Newest = a.Limit, true
	entries, err := env.World.Entries(ctx, f)
	if err != nil {
		return nil, err
	}
	rows := make([]EntryRow, len(entries))
	for i := range entries {
		rows[i] = entryRow(&entries[i])
	}
	return rows, nil
})

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
	d := EntryDetail{Entry: entries[0], Intact: entries[0].Intact(), Delivery: delivery(env.View, a.Entry)}
	if e, ok := env.View.Erasures.Get(a.Entry); ok {
		d.Erasure = append(env.World.Erased(ctx, e), erasedInSinks(env.View, a.Entry)...)
	}
	return d, nil
})

// EntryDetail is an entry in full.
type EntryDetail struct {
	fleet.Entry
	Intact   bool   `json:"intact" help:"its hash fits"`
	Delivery string `json:"delivery" help:"to the channel"`
	// Erasure says how far an erasure is, a place each.
	Erasure []op.ErasedAt `json:"erasure,omitempty" help:"how far its erasure is, place by place"`
}

// AuditExportArgs selects what to export.
type AuditExportArgs struct {
	From fleet.EntryNo `json:"from" flag:"from" help:"the first entry; the oldest when left out"`
	To   fleet.EntryNo `json:"to" flag:"to" help:"the last entry; the newest when left out"`
	EntryWhere
	Format string `json:"format" flag:"format" default:"jsonl" enum:"jsonl,csv" help:"jsonl, which audit verify checks, or csv"`
}

// Validate checks the range.
func (a AuditExportArgs) Validate() error {
	if a.To != 0 && a.From > a.To {
		return fleet.Invalidf("--from %d comes after --to %d", a.From, a.To)
	}
	return nil
}

// AuditExport writes the record for others to read.
var AuditExport = op.Stream(op.Spec{
	Name:    "audit export",
	Summary: "write the record as lines of JSON that audit verify checks, or as CSV",
	Long: "JSON has a header, a line an entry, and a trailer; a selection says so in its header.\n" +
		"CSV has a line of names, and is for spreadsheets: a cell that begins with = + - @ or a\n" +
		"tab gets a ' in front, so that none is taken for a formula; nothing can verify it.",
	Role:     fleet.Viewer,
	Examples: []string{"audit export", "audit export --from 1 --to 500", "audit export --since '30d ago' --op pool --format csv"},
}, nil, func(ctx context.Context, env op.Env, a AuditExportArgs, w io.Writer) error {
	f := a.filter(env.Now)
	f.From, f.To = a.From, a.To
	if a.Format != "csv" {
		return env.World.ExportEntries(ctx, f, w)
	}
	c := csvEntries{w: w}
	if err := env.World.ExportEntries(ctx, f, &c); err != nil {
		return err
	}
	return c.close()
})

// AuditVerifyArgs says where the record is checked.
type AuditVerifyArgs struct {
	Peers    bool     `json:"peers" flag:"peers" help:"check the archives of the other nodes too"`
	Postgres bool     `json:"postgres" flag:"postgres" help:"check the shared archive too"`
	Anchors  []Anchor `json:"anchors,omitempty" flag:"anchor" help:"ENTRY:HASH that was noted outside, for example in the channel; the CLI also takes a file that has some"`
}

// AuditVerify checks the archives.
var AuditVerify = op.Query(op.Spec{
	Name:    "audit verify",
	Summary: "prove that no entry of the record is missing or altered",
	Long: "Without a file, the node that answers checks its own archive against the chain in\n" +
		"the replicated state and the anchors that are kept there; --peers and --postgres have\n" +
		"it check the others too. What is wrong is named with its place and the first bad\n" +
		"entry. With a file, the CLI checks an export, offline.",
	Role:     fleet.Viewer,
	Examples: []string{"audit verify", "audit verify --peers --postgres", "audit verify --anchor 2:045b9228643fea3c29c4df292cb7371a0920de8afc5597e7a9717ec1da672a0a"},
}, func(ctx context.Context, env op.Env, a AuditVerifyArgs) (Verified, error) {
	v := op.Verify{Peers: a.Peers, Postgres: a.Postgres}
	for _, anchor := range a.Anchors {
		noted, err := op.ParseAnchor(string(anchor))
		if err != nil {
			return Verified{}, err
		}
		v.Anchors = append(v.Anchors, noted)
	}
	places := env.World.VerifyEntries(ctx, v)
	if err := unsound(places); err != nil {
		return Verified{}, err
	}
	own := places[0]
	text := fmt.Sprintf("the record is whole: %s, each fits the one before it", plural(own.Entries, "entry", "entries"))
	if own.Note != "" {
		text += " (" + own.Note + ")"
	}
	for _, p := range places[1:] {
		text += fmt.Sprintf("; %s: whole too, %s", p.Where, plural(p.Entries, "entry", "entries"))
		if p.Note != "" {
			text += " (" + p.Note + ")"
		}
	}
	for _, anchor := range v.Anchors {
		if anchor.N <= own.Last {
			text += fmt.Sprintf("; entry %d is the one that was anchored", anchor.N)
		} else {
			text += fmt.Sprintf("; the anchor of entry %d lies beyond it", anchor.N)
		}
	}
	return Verified{Node: env.Node, Entries: own.Entries, Head: env.View.Head, Text: text, Places: places}, nil
})

// unsound tells of every place where something is wrong, and of those that are
// sound beside them.
func unsound(places []op.Checked) error {
	var bad []string
	var sound []string
	var first *fleet.Error
	code := fleet.Code("")
	for _, p := range places {
		if p.Err == nil {
			sound = append(sound, p.Where)
			continue
		}
		bad = append(bad, p.Where+": "+p.Err.Msg)
		if first == nil {
			first, code = p.Err, p.Err.Code
		}
		if p.Err.Code == fleet.CodeConflict { // not whole, which is worse than not known
			first, code = p.Err, p.Err.Code
		}
	}
	if first == nil {
		return nil
	}
	err := &fleet.Error{Code: code, Msg: strings.Join(bad, "; "), Hint: first.Hint}
	if len(sound) > 0 {
		if err.Hint != "" {
			err.Hint += "; "
		}
		err.Hint += "whole: " + strings.Join(sound, ", ")
	}
	return err
}

// Verified is a successful check.
type Verified struct {
	Node    fleet.NodeID `json:"node"`
	Entries int          `json:"entries"`
	Head    string       `json:"head" help:"hash of the newest entry"`
	Text    string       `json:"text"`
	Places  []op.Checked `json:"places"`
}

// Anchor is ENTRY:HASH, as people noted it.
type Anchor string

// UnmarshalText reads an anchor.
func (a *Anchor) UnmarshalText(b []byte) error {
	if _, err := op.ParseAnchor(string(b)); err != nil {
		return err
	}
	*a = Anchor(b)
	return nil
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
		// A run of the same operation becomes one line, as long as nothing came
		// between, and it is not on its way to a sink as it is.
		if ok && !taken(tx, last.N) && p.Show == state.ShowGroup && last.Op == p.Line.Op && last.By == p.Line.By && last.Outcome == p.Line.Outcome &&
			last.Reason == p.Line.Reason && p.Line.At.Sub(last.At) < state.LineGrows && last.Last+1 == p.Line.First {
			text, mixed := strings.CutSuffix(last.Text, notAlike)
			last.Count++
			last.Last = p.Line.Last
			last.Text = p.Line.Text
			if mixed || !alike(text, p.Line.Text) {
				last.Text += notAlike
			}
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

// notAlike ends the text of a line that stands for entries of which the newest,
// whose text it is, does not tell what the others are.
const notAlike = ", after others unlike it"

// alike reports whether two texts say the same but for their numbers.
func alike(a, b string) bool {
	worded := func(s string) string {
		return strings.Map(func(r rune) rune {
			if r >= '0' && r <= '9' {
				return -1
			}
			return r
		}, s)
	}
	return worded(a) == worded(b)
}

// taken reports whether a line has begun to go to a sink.
func taken(tx *state.Tx, line uint64) bool {
	for _, s := range tx.Sinks.All() {
		if line <= max(s.Sent, s.Sending) {
			return true
		}
	}
	return false
}
