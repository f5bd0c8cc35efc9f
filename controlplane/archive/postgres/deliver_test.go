package postgres

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"footplate/controlplane/archive"
	"footplate/fleet"
)

// memory is a source in memory. Numbers in hole are not there yet.
type memory struct {
	mu      sync.Mutex
	entries []fleet.Entry
	hole    map[fleet.EntryNo]bool
}

func (m *memory) Last() fleet.EntryNo {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.entries) == 0 {
		return 0
	}
	return m.entries[len(m.entries)-1].N
}

func (m *memory) Query(_ context.Context, f archive.Filter) (list []fleet.Entry, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := int(f.From) - 1; i < len(m.entries) && len(list) < f.Limit; i++ {
		if !m.hole[m.entries[i].N] {
			list = append(list, m.entries[i])
		}
	}
	return list, nil
}

func (m *memory) set(entries []fleet.Entry, hole map[fleet.EntryNo]bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entries, m.hole = entries, hole
}

// book collects log lines.
type book struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *book) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *book) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// testBatch is small, so that what happens between batches happens.
const testBatch = 200

// deliver runs a Deliverer that tries again soon; stop ends it.
func deliver(t testing.TB, to *Archive, from Source, w io.Writer) (d *Deliverer, stop func()) {
	t.Helper()
	d = NewDeliverer(to, from, slog.New(slog.NewTextHandler(w, nil)))
	d.batch = testBatch
	d.poll, d.backoffMin, d.backoffMax = 5*time.Millisecond, 5*time.Millisecond, 50*time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(stop)
	return d, stop
}

// until waits for a condition.
func until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(50 * time.Second)
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("it never came: %s", what)
		}
	}
}

func (d *Deliverer) delivered(n fleet.EntryNo) func() bool {
	return func() bool { s := d.Status(); return s.Head.N >= n && s.Err == nil }
}

// While the database is away entries wait; afterwards each is there once, in
// order. The source is a node's own archive, which is not held up.
func TestOutage(t *testing.T) {
	to, db := open(t)
	own, err := archive.Open(t.TempDir(), "c1")
	ok(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- own.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		ok(t, <-done)
		ok(t, own.Close())
	})
	entries := chained("", 1, 6500)
	var log book
	d, stop := deliver(t, to, own, &log)
	own.Append(entries[:500])
	until(t, "the first entries", d.delivered(500))

	down := []struct {
		name string
		end  func()
	}{{"crash", server.Kill}, {"shutdown", server.Stop}, {"crash while it catches up", func() {
		s := d.Status()
		until(t, "a batch on its way", func() bool { return d.Status().Head.N > s.Head.N })
		server.Kill()
	}}}
	given := 500
	for i, outage := range down {
		more := 600
		switch i {
		case 0:
			more = 3600 // an hour's
		case 2:
			own.Append(entries[given : given+1000])
			given += 1000
		}
		outage.end()
		began := time.Now()
		own.Append(entries[given : given+more])
		given += more
		ok(t, own.Flush(within(t), fleet.EntryNo(given)))
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("%s: the node's own archive was held up for %s", outage.name, took)
		}
		until(t, "an error", func() bool { return d.Status().Err != nil })
		s := d.Status()
		if code(t, s.Err, fleet.CodeUnavailable); s.Behind < uint64(more) || s.Since.IsZero() || s.Failures == 0 {
			t.Errorf("%s: status is %+v", outage.name, s)
		}
		failures := s.Failures
		until(t, "more attempts", func() bool { return d.Status().Failures > failures+3 })
		ok(t, server.Start())
		back := time.Now()
		until(t, "all entries", d.delivered(fleet.EntryNo(given)))
		t.Logf("%s: %d entries caught up in %s", outage.name, s.Behind, time.Since(back).Round(time.Millisecond))
		if s := d.Status(); s.Behind != 0 || !s.Since.IsZero() || s.PutAt.IsZero() || s.PutCount < uint64(given) {
			t.Errorf("%s: status is %+v", outage.name, s)
		}
	}
	equal(t, stored(t, db, "c1"), entries[:given])
	_, err = to.Verify(within(t), 0, archive.Anchor{N: fleet.EntryNo(given), Hash: entries[given-1].Hash})
	ok(t, err)
	stop()
	if n := strings.Count(log.String(), "takes entries again"); n != 3 {
		t.Errorf("it came back %d times:\n%s", n, log.String())
	}
	if n := strings.Count(log.String(), "does not take entries"); n < 3 || n > 15 {
		t.Errorf("it was away %d times:\n%s", n, log.String())
	}
}

// A database that is not there when the node starts is found later.
func TestDeliverToLateDatabase(t *testing.T) {
	db := server.Database(t)
	server.Exec(t, "postgres", "ALTER DATABASE "+db+" RENAME TO late_"+db)
	to, err := New(server.URL(db), "c1")
	ok(t, err)
	t.Cleanup(to.Close)
	entries := chained("", 1, 100)
	var log book
	d, _ := deliver(t, to, &memory{entries: entries}, &log)
	until(t, "an error", func() bool { return d.Status().Failures > 2 })
	code(t, d.Status().Err, fleet.CodeNotFound)
	server.Exec(t, "postgres", "ALTER DATABASE late_"+db+" RENAME TO "+db)
	until(t, "all entries", d.delivered(100))
	equal(t, stored(t, db, "c1"), entries)
	if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
		t.Errorf("somebody should act, and is told %d times:\n%s", n, log.String())
	}
}

// A gap in the node's own archive is waited for: nothing is left out.
func TestDeliverWaitsForGaps(t *testing.T) {
	to, db := open(t)
	entries := chained("", 1, 100)
	from := &memory{entries: entries, hole: map[fleet.EntryNo]bool{31: true, 32: true}}
	d, _ := deliver(t, to, from, io.Discard)
	until(t, "an error", func() bool { return d.Status().Err != nil })
	if s := d.Status(); s.Head.N != 30 || s.Behind != 70 || s.Err.Error() != "this node does not have entries 31 to 32, which postgres needs next" {
		t.Fatalf("status is %+v", s)
	}
	from.set(entries, nil)
	until(t, "all entries", d.delivered(100))
	equal(t, stored(t, db, "c1"), entries)
}

// Two histories that meet stop delivery, loudly, and nothing is overwritten;
// when somebody has mended it, delivery goes on by itself.
func TestDeliverConflict(t *testing.T) {
	to, db := open(t)
	other := chained("x", 1, 40)
	ok(t, to.Put(within(t), other))
	entries := chained("", 1, 100)
	var log book
	d, _ := deliver(t, to, &memory{entries: entries}, &log)
	until(t, "an error", func() bool { return d.Status().Failures > 2 })
	if code(t, d.Status().Err, fleet.CodeConflict); !strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("it is not an error in the log:\n%s", log.String())
	}
	equal(t, stored(t, db, "c1"), other)
	server.Exec(t, db, "UPDATE footplate.entries SET cluster = 'lost'")
	until(t, "all entries", d.delivered(100))
	equal(t, stored(t, db, "c1"), entries)
}

// An old leader and a new one deliver at once; then only the new one does, and
// goes on where the two of them were.
func TestDeliverTwice(t *testing.T) {
	a, db := open(t)
	b := opened(t, server.URL(db), "c1")
	entries := chained("", 1, 2400)
	from := &memory{entries: entries[:1200]}
	old, stopOld := deliver(t, a, from, io.Discard)
	young, _ := deliver(t, b, from, io.Discard)
	until(t, "the first", old.delivered(1200))
	stopOld()
	from.set(entries, nil)
	until(t, "all entries", young.delivered(2400))
	equal(t, stored(t, db, "c1"), entries)
	put := old.Status().PutCount
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- old.Run(ctx) }() // leads again: what it knew is old
	until(t, "its own look", old.delivered(2400))
	cancel()
	ok(t, <-done)
	if s := old.Status(); s.PutCount != put {
		t.Errorf("it put %d entries again", s.PutCount-put)
	}
}

// A batch that is too much for the time that the database gives is put by parts,
// and does not fail for ever.
func TestDeliverInParts(t *testing.T) {
	a, db := open(t)
	server.Exec(t, db, `
		CREATE FUNCTION too_much() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			IF (SELECT count(*) FROM added) > 30 THEN
				RAISE EXCEPTION 'canceling statement due to statement timeout' USING ERRCODE = 'query_canceled';
			END IF;
			RETURN NULL;
		END
		$$;
		CREATE TRIGGER too_much AFTER INSERT ON footplate.entries REFERENCING NEW TABLE AS added EXECUTE FUNCTION too_much()`)
	entries := chained("", 1, 1000)
	d, _ := deliver(t, a, &memory{entries: entries}, io.Discard)
	until(t, "all entries", d.delivered(1000))
	equal(t, stored(t, db, "c1"), entries)
	if s := d.Status(); s.Failures < 3 || s.Failures > 60 {
		t.Errorf("it failed %d times", s.Failures)
	}
}

// Large entries go a few at a time, the largest alone.
func TestAtOnce(t *testing.T) {
	big := func(size int) fleet.Entry { return fleet.Entry{Args: bytes.Repeat([]byte("x"), size)} }
	for _, row := range []struct {
		sizes []int
		want  int
	}{
		{nil, 0}, {[]int{1, 1, 1}, 3}, {[]int{2 * batchBytes, 1}, 1}, {[]int{batchBytes - 1, 1, 1}, 2}, {[]int{1, batchBytes}, 1},
	} {
		var entries []fleet.Entry
		for _, size := range row.sizes {
			entries = append(entries, big(size))
		}
		if n := len(atOnce(entries)); n != row.want {
			t.Errorf("of entries of %v bytes %d go at once; want %d", row.sizes, n, row.want)
		}
	}
}

const deliverHere = "FOOTPLATE_TEST_DELIVER"

// crashEntries are what a process that is killed delivers.
func crashEntries() []fleet.Entry { return chained("", 1, 2*testBatch+50) }

func deliverUntilKilled(url string) {
	to, err := New(url, "c1")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	d := NewDeliverer(to, &memory{entries: crashEntries()}, slog.New(slog.DiscardHandler))
	d.batch = testBatch
	_ = d.Run(context.Background())
}

// A deliverer is killed with -9 at the worst moments: all is copied and not
// committed, and committed but not acknowledged. The next one goes on, and each
// entry is there once.
func TestKilledDeliverer(t *testing.T) {
	for _, row := range []struct {
		commit    int // which of the process
		committed bool
		want      int // entries that are there after the death
	}{{1, false, 0}, {1, true, testBatch}, {2, false, testBatch}, {2, true, 2 * testBatch}} {
		t.Run(fmt.Sprintf("commit %d, done %v", row.commit, row.committed), func(t *testing.T) {
			a, db := open(t)
			cut := newCut(t, row.commit, row.committed)
			u := fmt.Sprintf("postgres://postgres:hunter2@%s/%s?sslmode=disable", cut.addr, db)
			server.Exec(t, "postgres", "ALTER ROLE postgres PASSWORD 'hunter2'")
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), deliverHere+"="+u)
			cmd.Stderr = os.Stderr
			ok(t, cmd.Start())
			select {
			case <-cut.reached:
			case <-time.After(50 * time.Second):
				t.Error("it never came to that commit")
			}
			ok(t, cmd.Process.Kill())
			_ = cmd.Wait()
			cut.close()
			entries := crashEntries()
			until(t, "the server to notice", func() bool {
				var n int
				ok(t, a.pool.QueryRow(within(t), "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND application_name = 'footplate' AND client_addr IS NOT NULL", db).Scan(&n))
				return n == 0
			})
			equal(t, stored(t, db, "c1"), entries[:row.want])
			d, _ := deliver(t, a, &memory{entries: entries}, io.Discard)
			until(t, "all entries", d.delivered(fleet.EntryNo(len(entries))))
			equal(t, stored(t, db, "c1"), entries)
		})
	}
}

// Where the answer to the commit is lost, Put says that it does not know, and
// the same entries may be put again.
func TestPutUnknown(t *testing.T) {
	for _, committed := range []bool{false, true} {
		a, db := open(t)
		cut := newCut(t, 1, committed)
		server.Exec(t, "postgres", "ALTER ROLE postgres PASSWORD 'hunter2'")
		b := opened(t, fmt.Sprintf("postgres://postgres:hunter2@%s/%s?sslmode=disable", cut.addr, db), "c1")
		entries := chained("", 1, 50)
		ctx, cancel := context.WithTimeout(within(t), time.Second)
		err := b.Put(ctx, entries)
		cancel()
		if code(t, err, fleet.CodeUnknown); !Retryable(err) {
			t.Errorf("%v is not to be tried again", err)
		}
		cut.close()
		ok(t, a.Put(within(t), entries))
		equal(t, stored(t, db, "c1"), entries)
	}
}

// cut is a proxy before the server that stops at a commit: before the server is
// told, or when it has done it and before the client is told.
type cut struct {
	addr    string
	reached chan struct{} // closed when the commit is held, or its answer
	l       net.Listener
	mu      sync.Mutex
	conns   []net.Conn
}

func newCut(t *testing.T, commit int, committed bool) *cut {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	c := &cut{addr: l.Addr().String(), reached: make(chan struct{}), l: l}
	t.Cleanup(c.close)
	seen := 0
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			upstream, err := net.Dial("tcp", server.Addr())
			if err != nil {
				_ = client.Close()
				continue
			}
			c.mu.Lock()
			c.conns = append(c.conns, client, upstream)
			c.mu.Unlock()
			hold := make(chan struct{})
			go func() { // the answers
				b := make([]byte, 64<<10)
				for {
					n, err := upstream.Read(b)
					if err != nil {
						_ = client.Close()
						return
					}
					select {
					case <-hold:
						close(c.reached) // the answer to the commit: keep it
						return
					default:
					}
					if _, err := client.Write(b[:n]); err != nil {
						return
					}
				}
			}()
			go func() { // the questions; a commit comes alone, the client waits before it
				defer func() { _ = upstream.Close() }()
				b := make([]byte, 64<<10)
				for {
					n, err := client.Read(b)
					if err != nil {
						return
					}
					if bytes.HasPrefix(b[:n], []byte("Q\x00\x00\x00\x0bcommit\x00")) {
						c.mu.Lock()
						seen++
						now := seen == commit
						c.mu.Unlock()
						if now && !committed {
							close(c.reached)
							_, _ = client.Read(b)
							return
						}
						if now {
							close(hold)
						}
					}
					if _, err := upstream.Write(b[:n]); err != nil {
						return
					}
				}
			}()
		}
	}()
	return c
}

func (c *cut) close() {
	_ = c.l.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		_ = conn.Close()
	}
}
