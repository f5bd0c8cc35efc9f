package catalog

import (
	"context"
	"fmt"
	"strings"

	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// AutomationStatus lists the loops and which are paused.
var AutomationStatus = op.Query(op.Spec{
	Name:     "automation status",
	Summary:  "list what the leader does by itself, and what of it is paused",
	Role:     fleet.Viewer,
	Examples: []string{"automation status"},
}, func(_ context.Context, env op.Env, _ struct{}) ([]LoopRow, error) {
	rows := []LoopRow{}
	for _, l := range fleet.Loops() {
		row := LoopRow{Loop: l, State: "runs", Note: loopNote(env.View, l)}
		if p, ok := env.View.Pauses.Get(l); ok && p.Until > env.Now {
			row.State, row.By, row.Until, row.Reason = "paused", p.By, p.Until, p.Reason
		}
		rows = append(rows, row)
	}
	return rows, nil
})

// LoopRow is a loop as lists show it.
type LoopRow struct {
	Loop   fleet.Loop      `json:"loop" col:"LOOP" id:"true"`
	State  string          `json:"state" col:"STATE"`
	By     fleet.Principal `json:"by,omitempty" col:"BY"`
	Until  fleet.Time      `json:"until" col:"UNTIL"`
	Reason string          `json:"reason,omitempty" col:"REASON"`
	Note   string          `json:"note,omitempty" col:"NOTE" help:"what it does that is worth knowing"`
}

// loopNote says what a person should know of a loop, whether it is paused or not.
func loopNote(v *state.View, l fleet.Loop) string {
	switch l {
	case fleet.LoopProvision:
		var held []string
		for _, p := range v.Pools.All() {
			if p.StrandedAt != 0 {
				held = append(held, strandedWords(p))
			}
			if p.HeldAt != 0 {
				held = append(held, heldWords(p))
			}
		}
		return strings.Join(held, "; ")
	case fleet.LoopRetain:
		return fmt.Sprintf("finished builds are kept for %s", v.KeepFor())
	}
	return ""
}

// heldWords says what the guard holds back in a pool.
func heldWords(p fleet.Pool) string {
	return fmt.Sprintf("silent hosts of pool %q are not replaced since %s: %s", p.Name, moment(p.HeldAt), p.HeldWhy)
}

// AutomationArgs names a loop.
type AutomationArgs struct {
	Loop fleet.Loop `json:"loop,omitempty" arg:"LOOP" enum:"promote,dispatch,provision,watch,deliver,retain" help:"which loop; all when it is left out"`
}

// AutomationPauseArgs names a loop and when its pause ends.
type AutomationPauseArgs struct {
	AutomationArgs
	For fleet.Duration `json:"for" flag:"for" default:"1h" help:"it ends by itself after this long"`
}

// Validate checks the expiry.
func (a AutomationPauseArgs) Validate() error { return checkExpiry(a.For) }

// AutomationPause is the big red button.
var AutomationPause = op.Mutation(op.Spec{
	Name:    "automation pause",
	Summary: "the big red button: loops go on deciding, and do nothing",
	Long: "Without a loop, all are paused but deliver, so that the channel goes on telling\n" +
		"what happens. Hosts and running builds are left alone.",
	Role:     fleet.Responder,
	Risk:     op.Disruptive,
	Show:     state.ShowLine,
	Examples: []string{"automation pause --for 15m --reason 'it is launching hosts without end'", "automation pause provision --for 1h"},
}, func(tx *state.Tx, m op.Meta, a AutomationPauseArgs) (op.Result, error) {
	res := op.Result{Text: fmt.Sprintf("paused %s for %s", loopWords(a.Loop), a.For)}
	for _, l := range fleet.Loops() {
		if a.Loop == l || a.Loop == "" && l != fleet.LoopDeliver {
			tx.Pauses.Put(l, fleet.Pause{Loop: l, By: m.By, Reason: m.Reason, At: tx.At, Until: tx.At.Add(a.For)})
			res.Changes = append(res.Changes, fmt.Sprintf("loop %s stops acting for %s", l, a.For))
		}
	}
	return res, nil
})

// AutomationResume ends pauses of loops.
var AutomationResume = op.Mutation(op.Spec{
	Name:     "automation resume",
	Summary:  "let paused loops act again",
	Role:     fleet.Responder,
	Risk:     op.Safe,
	Show:     state.ShowLine,
	Examples: []string{"automation resume", "automation resume provision"},
}, func(tx *state.Tx, _ op.Meta, a AutomationArgs) (op.Result, error) {
	n := 0
	for _, l := range fleet.Loops() {
		if _, ok := tx.View().Paused(l); ok && (a.Loop == l || a.Loop == "") {
			tx.Pauses.Delete(l)
			n++
		}
	}
	if n == 0 {
		return op.Result{}, fleet.NotFoundf("%s: nothing of it is paused", loopWords(a.Loop)).WithHint("footplate automation status")
	}
	return op.Result{Text: "resumed " + loopWords(a.Loop)}, nil
})

func loopWords(l fleet.Loop) string {
	if l == "" {
		return "the automation"
	}
	return "loop " + string(l)
}

// OverrideExpireArgs names overrides whose time is over.
type OverrideExpireArgs struct {
	Gates  []string     `json:"gates,omitempty"`
	Pauses []fleet.Loop `json:"pauses,omitempty"`
}

// OverrideExpire ends overrides whose time is over, and says so.
var OverrideExpire = op.Internal(op.Spec{
	Name: "override expire", Summary: "end overrides whose time is over", Role: fleet.System, Record: op.Audit, Show: state.ShowLine,
}, func(tx *state.Tx, _ op.Meta, a OverrideExpireArgs) (op.Result, error) {
	text := ""
	note := func(s string) {
		if text != "" {
			text += "; "
		}
		text += s
	}
	for _, k := range a.Gates {
		if g, ok := tx.Gates.Get(k); ok && g.Until <= tx.At {
			tx.Gates.Delete(k)
			note(fmt.Sprintf("the pause of %s set by %s has ended by itself", gateWords(QueueGateArgs{g.Stage, g.Org, g.Pool}), g.By))
		}
	}
	for _, l := range a.Pauses {
		if p, ok := tx.Pauses.Get(l); ok && p.Until <= tx.At {
			tx.Pauses.Delete(l)
			note(fmt.Sprintf("the pause of loop %s set by %s has ended by itself", l, p.By))
		}
	}
	return op.Result{Text: text, Quiet: text == ""}, nil
})
