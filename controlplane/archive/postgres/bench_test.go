package postgres

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"footplate/fleet"
)

// BenchmarkPut puts batches of entries. In turn with it the same rows go into
// the same table of other databases by COPY alone, without a look at what is
// there: by the driver from values that are ready (x-copy, limits.md 8c: at
// least 0.8), and as bytes that are ready (x-bytes). Each figure is of medians.
func BenchmarkPut(b *testing.B) {
	archives := make([]*Archive, 3)
	for i := range archives {
		archives[i], _ = open(b)
	}
	ctx := within(b)
	names := strings.Split(columnNames(), ", ")
	var prev string
	took := make([][]time.Duration, len(archives))
	for i := range b.N + 1 {
		first := fleet.EntryNo(i)*batch + 1
		entries := chained(prev, first, first+batch-1)
		prev = entries[batch-1].Hash
		ready := binaryRows(b, "c1", entries)
		values := make([][]any, len(entries))
		for i := range entries {
			r := row{approvedBy: []string{}, objects: []string{}, erased: []string{}}
			ok(b, r.set("c1", &entries[i]))
			for _, c := range r.columns() {
				values[i] = append(values[i], reflect.ValueOf(c.field).Elem().Interface())
			}
		}
		for k, run := range []func(a *Archive) error{
			func(a *Archive) error { return a.Put(ctx, entries) },
			func(a *Archive) error {
				_, err := a.pool.CopyFrom(ctx, pgx.Identifier{"footplate", "entries"}, names, pgx.CopyFromRows(values))
				return err
			},
			func(a *Archive) error {
				conn, err := a.pool.Acquire(ctx)
				if err != nil {
					return err
				}
				defer conn.Release()
				_, err = conn.Conn().PgConn().CopyFrom(ctx, bytes.NewReader(ready), "COPY footplate.entries ("+columnNames()+") FROM STDIN BINARY")
				return err
			},
		} {
			ok(b, archives[k].addMonths(ctx, archives[k].pool, entries))
			start := time.Now()
			ok(b, run(archives[k]))
			if i > 0 { // the first is for the caches
				took[k] = append(took[k], time.Since(start))
			}
		}
	}
	var median [3]float64
	for k := range took {
		slices.Sort(took[k])
		median[k] = took[k][len(took[k])/2].Seconds()
	}
	b.ReportMetric(batch/median[0], "entries/s")
	b.ReportMetric(batch/median[1], "copied/s")
	b.ReportMetric(median[1]/median[0], "x-copy")
	b.ReportMetric(median[2]/median[0], "x-bytes")
	b.ReportMetric(0, "ns/op")
}
