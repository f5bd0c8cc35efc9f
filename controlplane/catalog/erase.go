package catalog

import (
	"fmt"
	"slices"
	"strings"

	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// erasable are the fields of an entry that can be erased, in the order of the
// chain.
var erasable = [...]string{"by", "args", "reason", "text"}

// AuditEraseArgs says what to erase.
type AuditEraseArgs struct {
	Entry  fleet.EntryNo `json:"entry" arg:"ENTRY" required:"true" help:"its number"`
	Fields []string      `json:"fields" flag:"field" required:"true" enum:"args,reason,text,by" help:"what to erase of it: args, reason, text or by; repeatable"`
}

// AuditErase takes a leaked secret out of the record. The chain stays whole: in
// the place of a field stands its salted hash.
var AuditErase = op.Mutation(op.Spec{
	Name:    "audit erase",
	Summary: "take a leaked secret out of an entry of the record, for good",
	Long: "The field leaves the channel at once, and within seconds the archive, the Raft log\n" +
		"and the snapshots of every node, the shared archive, and what the bot has posted of\n" +
		"it in Slack: lines, and the answer to the command; audit show says how far that is.\n" +
		"The chain still verifies. It needs a reason: do not repeat the secret in it. Not\n" +
		"reached: what people wrote themselves, answers that only one person saw, answers to\n" +
		"questions and snippets that quote it, exports, and what the operation set (the reason\n" +
		"of a gate or a pause, the steps of a build). Whatever leaked, replace it.",
	Role:     fleet.Admin,
	Risk:     op.Disruptive,
	Show:     state.ShowLine,
	Examples: []string{"audit erase 12 --field args --field text --reason 'a token was pasted'"},
}, func(tx *state.Tx, m op.Meta, a AuditEraseArgs) (op.Result, error) {
	switch {
	case m.Reason == "":
		return op.Result{}, fleet.Invalidf("audit erase needs a reason").WithHint("--reason WHY, without the secret")
	case a.Entry == 0 || a.Entry > tx.Entry:
		return op.Result{}, fleet.NotFoundf("there is no entry %d", a.Entry).WithHint("footplate audit tail")
	}
	row, _ := tx.Erasures.Get(a.Entry)
	var fields []string // all, in the order of the chain
	var fresh []string
	for _, f := range erasable {
		wanted := slices.Contains(a.Fields, f)
		if wanted && !slices.Contains(row.Fields, f) {
			fresh = append(fresh, f)
		}
		if wanted || slices.Contains(row.Fields, f) {
			fields = append(fields, f)
		}
	}
	if len(fresh) == 0 {
		return op.Result{}, fleet.Conflictf("%s of entry %d is erased already", strings.Join(a.Fields, ", "), a.Entry)
	}
	tx.Erasures.Put(a.Entry, state.Erasure{Entry: a.Entry, Fields: fields, At: tx.At, Index: m.Index})
	tx.Forget(a.Entry, fresh)
	return op.Result{
		Text: fmt.Sprintf("erased %s of entry %d from the channel; the archives, Postgres, Slack and the disks of the nodes follow within seconds: audit show %d says how far",
			strings.Join(fresh, " and "), a.Entry, a.Entry),
		Changes: []string{fmt.Sprintf("erase %s of entry %d for good, from every archive, the channel and what was posted of it", strings.Join(fresh, " and "), a.Entry)},
	}, nil
})

// AuditAnchorArgs is empty: the head of the chain is what it is in Apply.
type AuditAnchorArgs struct{}

// AuditAnchor puts the head of the chain into the channel: from there it goes
// where nobody who could write the record anew can.
var AuditAnchor = op.Internal(op.Spec{
	Name: "audit anchor", Summary: "put the head of the chain into the channel", Role: fleet.System, Record: op.Audit, Show: state.ShowLine,
}, func(tx *state.Tx, _ op.Meta, _ AuditAnchorArgs) (op.Result, error) {
	n, hash := tx.Entry, tx.Head
	newest := fleet.EntryNo(0)
	for k := range tx.Anchors.Backward() {
		newest = k
		break
	}
	if n == 0 || newest != 0 && n <= newest+1 { // the next is that anchor's own entry
		return op.Result{Quiet: true}, nil
	}
	tx.Anchors.Put(n, state.Anchor{Entry: n, Hash: hash, At: tx.At})
	var old []fleet.EntryNo
	for k := range tx.Anchors.All() {
		if tx.Anchors.Len()-len(old) <= state.AnchorsKeep {
			break
		}
		old = append(old, k)
	}
	for _, k := range old {
		tx.Anchors.Delete(k)
	}
	return op.Result{Text: fmt.Sprintf("the record up to entry %d is proven by: audit verify --anchor %d:%s", n, n, hash)}, nil
})
