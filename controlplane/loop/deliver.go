package loop

import (
	"footplate/controlplane/catalog"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// deliverAtOnce bounds how many parcels one command delivers.
const deliverAtOnce = 500

// Deliver delivers what the outbox holds, in order. The console's channel is
// part of the state, so the command that delivers is the delivery.
func Deliver(_ fleet.Time, v *state.View) []state.Command {
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
