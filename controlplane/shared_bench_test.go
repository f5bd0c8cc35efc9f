package controlplane

import (
	"context"
	"testing"
	"time"

	"footplate/controlplane/archive/postgres/postgrestest"
	"footplate/controlplane/replica/rafttest"
)

// BenchmarkShared compares actions on nodes that deliver to PostgreSQL with
// those on nodes that have none: while it is away, and while it catches up and
// keeps up. Then everything must be there, once, in order. (P11.)
func BenchmarkShared(b *testing.B) {
	pg := postgrestest.Need(b)
	without := benchCluster(b)
	url := pg.URL("postgres")
	with := benchCluster(b, func(c *Config) { c.Postgres = url })
	delivered := func() {
		rafttest.Wait(b, "the delivery", func() bool {
			st, ok := with[0].shared.status()
			return ok && st.Err == nil && st.Behind == 0 && st.Head.N == with[0].machine.View().Entry
		})
	}
	delivered()
	pg.Stop()
	b.Run("away", func(b *testing.B) {
		rafttest.Compare(b, 16, benchRounds, benchRound, benchDoor(b, without), benchDoor(b, with))
	})
	st, _ := with[0].shared.status()
	if st.Err == nil || st.Behind == 0 {
		b.Fatalf("the server is away, and nothing waits: %+v", st)
	}
	if err := pg.Start(); err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	b.Run("there", func(b *testing.B) {
		rafttest.Compare(b, 16, benchRounds, benchRound, benchDoor(b, without), benchDoor(b, with))
	})
	delivered()
	b.Logf("%d entries had waited; all %d are there %s after the server was", st.Behind, with[0].machine.View().Entry, time.Since(began).Round(time.Millisecond))
	a, err := with[0].shared.of(stretch{epoch: 1})
	if err != nil {
		b.Fatal(err)
	}
	if r, err := a.Verify(context.Background(), 0, knownAnchors(with[0].machine.View())...); err != nil || r.Count != int(with[0].machine.View().Entry) {
		b.Fatalf("what is there: %+v, %v", r, err)
	}
}
