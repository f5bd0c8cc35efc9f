package loop

import (
	"footplate/controlplane/catalog"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// deliverAtOnce bounds how many parcels one command delivers.
const deliverAtOnce = 500

// AnchorEvery is how often the head of the chain goes to the channel, when
// something has happened.
const AnchorEvery = fleet.Hour

// Deliver delivers what the outbox holds, in order. The console's channel is
// part of the state, so the command that delivers is the delivery. And it sees
// to it that the head of the chain is in the channel.
func Deliver(now fleet.Time, v *state.View) []state.Command {
	return append(deliver(v), anchor(now, v)...)
}

// anchor anchors the chain: an hour after the cluster began, or after the last
// time, if there was any entry but that of the last time itself.
func anchor(now fleet.Time, v *state.View) []state.Command {
	var last state.Anchor
	for _, a := range v.Anchors.Backward() {
		last = a
		break
	}
	if last.Entry == 0 {
		for _, n := range v.Nodes.All() {
			if last.At == 0 || n.At < last.At {
				last.At = n.At
			}
		}
	}
	if last.At == 0 || now.Sub(last.At) < AnchorEvery || v.Entry <= last.Entry+1 {
		return nil
	}
	return []state.Command{command(fleet.LoopDeliver, catalog.AuditAnchor, catalog.AuditAnchorArgs{})}
}

func deliver(v *state.View) []state.Command {
	upto := fleet.EntryNo(0)
	n := 0
	for id := range v.Outbox.All() {
		upto = id
		if n++; n == deliverAtOnce {
			break
		}
	}
	if n == 0 {
		return nil
	}
	return []state.Command{command(fleet.LoopDeliver, catalog.OutboxDeliver, catalog.OutboxDeliverArgs{Upto: uint64(upto)})}
}
