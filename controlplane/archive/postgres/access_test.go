package postgres

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"footplate/fleet"
)

// login makes a user that may log in, with the password "hunter2", and returns
// its URL for a database.
func login(t testing.TB, db, name, grants string) string {
	t.Helper()
	name = fmt.Sprintf("%s_%s", name, db)
	server.Exec(t, "postgres", fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD 'hunter2' %s", name, grants))
	t.Cleanup(func() {
		server.Exec(t, db, "DROP OWNED BY "+name+" CASCADE")
		server.Exec(t, "postgres", "DROP OWNED BY "+name+" CASCADE; DROP ROLE "+name)
	})
	return server.TCP(db, name, "hunter2")
}

// The role that delivers may put and read and erase, and nothing else; the
// reader may read. Both hold for whoever has been granted the role.
func TestRoles(t *testing.T) {
	owner, db := open(t)
	ctx := within(t)
	entries := chained("", 1, 20)
	ok(t, owner.Put(ctx, entries))
	writerURL := login(t, db, "node", "IN ROLE footplate_writer")
	readerURL := login(t, db, "analyst", "IN ROLE footplate_reader")
	strangerURL := login(t, db, "stranger", "")

	a := opened(t, writerURL, "c1")
	more := chained(entries[19].Hash, 21, 700) // new months too
	ok(t, a.Put(ctx, more))
	erased := more[0]
	ok(t, erased.Erase("text"))
	ok(t, a.Erase(ctx, &erased))
	_, err := a.Verify(ctx, 0)
	ok(t, err)

	forbidden := []string{
		"UPDATE footplate.entries SET text = 'x'",
		"DELETE FROM footplate.entries",
		"TRUNCATE footplate.entries",
		"DROP TABLE footplate.entries",
		"DROP TABLE footplate.entries_2026_11",
		"UPDATE footplate.entries_2026_11 SET text = 'x'",
		"DELETE FROM footplate.entries_2026_11",
		"SELECT footplate.drop_months_before('2030-01-01')",
		"INSERT INTO footplate.dropped VALUES ('c1', 1, 'x')",
		"INSERT INTO footplate.versions VALUES (99, 'x')",
		"ALTER TABLE footplate.entries ADD COLUMN x int",
		"CREATE TABLE footplate.x ()",
		"CREATE TRIGGER x BEFORE INSERT ON footplate.entries EXECUTE FUNCTION suppress_redundant_updates_trigger()",
	}
	reading := []string{"SELECT count(*) FROM footplate.entries", "SELECT * FROM footplate.today", "SELECT * FROM footplate.about('host', 'x')", "SELECT footplate.parsed('{}')"}
	writing := []string{
		"INSERT INTO footplate.entries SELECT * FROM footplate.entries ON CONFLICT DO NOTHING",
		"SELECT footplate.add_month('2027-03-05')",
	}
	for _, who := range []struct {
		url             string
		may, mayNot     []string
		canReadAnything bool
	}{
		{server.URL(db) + "&options=-crole%3Dfootplate_writer", append(reading, writing...), forbidden, true},
		{writerURL, append(reading, writing...), forbidden, true},
		{readerURL, reading, append(writing, append(forbidden, "SELECT footplate.erase('c1', 1, '{}')")...), true},
		{strangerURL, nil, append(reading, append(writing, forbidden...)...), false},
	} {
		conn, err := pgx.Connect(ctx, who.url)
		ok(t, err)
		for _, sql := range who.may {
			if _, err := conn.Exec(ctx, sql); err != nil {
				t.Errorf("%s may not: %s: %v", who.url, sql, err)
			}
		}
		for _, sql := range who.mayNot {
			_, err := conn.Exec(ctx, sql)
			if err == nil || !strings.Contains(err.Error(), "42501") {
				t.Errorf("%s may: %s: %v", who.url, sql, err)
			}
		}
		ok(t, conn.Close(context.WithoutCancel(ctx)))
	}
	// What footplate itself does runs as that role, even where it was given
	// the owner's URL.
	for _, sql := range forbidden {
		if _, err := owner.pool.Exec(ctx, sql); err == nil {
			t.Errorf("it may: %s", sql)
		}
	}
}

// A user that may make roles and owns the database needs no superuser.
func TestOwner(t *testing.T) {
	db := server.Database(t)
	u := login(t, db, "owner", "CREATEROLE")
	server.Exec(t, "postgres", fmt.Sprintf("ALTER DATABASE %s OWNER TO owner_%s", db, db))
	t.Cleanup(func() { server.Exec(t, "postgres", fmt.Sprintf("ALTER DATABASE %s OWNER TO postgres", db)) })
	a := opened(t, u, "c1")
	entries := chained("", 1, 700)
	ok(t, a.Put(within(t), entries))
	ok(t, entries[3].Erase("text"))
	ok(t, a.Erase(within(t), &entries[3]))
	equal(t, stored(t, db, "c1"), entries)
	a.Close()
}

// A database of another taste: nothing depends on how its sessions write times and
// texts, in which zone they are, and where they look for names.
func TestOtherDefaults(t *testing.T) {
	db := server.Database(t)
	for _, set := range []string{
		"datestyle = 'SQL, DMY'", "timezone = 'Pacific/Kiritimati'", "standard_conforming_strings = off", "bytea_output = 'escape'",
		"search_path = 'nowhere'", "default_transaction_isolation = 'serializable'", "extra_float_digits = -5",
	} {
		server.Exec(t, "postgres", fmt.Sprintf("ALTER DATABASE %s SET %s", db, set))
	}
	ctx := within(t)
	a := opened(t, server.URL(db), "c1")
	entries := chained("", 1, 1000) // on both sides of a month's end, in UTC
	ok(t, a.Put(ctx, entries))
	e := &entries[13]
	for _, f := range []string{"by", "args", "reason", "text"} {
		ok(t, e.Erase(f))
		ok(t, a.Erase(ctx, e))
	}
	equal(t, stored(t, db, "c1"), entries)
	_, err := a.Verify(ctx, 0)
	ok(t, err)
	var november, december int
	ok(t, a.pool.QueryRow(ctx, "SELECT (SELECT count(*) FROM footplate.entries WHERE at < '2026-12-01T00:00:00Z'), (SELECT count(*) FROM footplate.entries WHERE at >= '2026-12-01T00:00:00Z')").
		Scan(&november, &december))
	server.Exec(t, db, "SELECT footplate.drop_months_before('2026-12-24')")
	got := stored(t, db, "c1")
	if november != 599 || december != 401 || len(got) != december {
		t.Errorf("%d in November, %d in December; %d are left of both", november, december, len(got))
	}
	_, err = opened(t, server.URL(db), "c1").Verify(ctx, 0)
	ok(t, err)
}

// Many nodes that start at once make the tables once, however the database
// isolates transactions as a rule.
func TestMigrateTogether(t *testing.T) {
	for _, level := range []string{"read committed", "serializable"} {
		t.Run(level, func(t *testing.T) {
			db := server.Database(t)
			server.Exec(t, "postgres", fmt.Sprintf("ALTER DATABASE %s SET default_transaction_isolation = '%s'", db, level))
			migrateTogether(t, db)
		})
	}
}

func migrateTogether(t *testing.T, db string) {
	ctx := within(t)
	var group errgroup.Group
	for range 8 {
		group.Go(func() error {
			a, err := Open(ctx, server.URL(db), "c1")
			if err == nil {
				a.Close()
			}
			return err
		})
	}
	ok(t, group.Wait())
	conn, err := pgx.Connect(ctx, server.URL(db))
	ok(t, err)
	defer func() { _ = conn.Close(ctx) }()
	var n, last int
	ok(t, conn.QueryRow(ctx, "SELECT count(*), max(version) FROM footplate.versions").Scan(&n, &last))
	list, err := steps()
	if ok(t, err); n != len(list) || last != len(list) {
		t.Fatalf("%d migrations to version %d; want %d", n, last, len(list))
	}
}

// Tables of an earlier version are brought up to date with what is in them.
func TestMigrateFromFirst(t *testing.T) {
	a, db := open(t)
	entries := chained("", 1, 20)
	ok(t, a.Put(within(t), entries))
	a.Close()
	server.Exec(t, db, `DROP VIEW footplate.today, footplate.automation, footplate.timeline, footplate.incidents, footplate.refusals, footplate.weeks;
		DROP FUNCTION footplate.about, footplate.parsed;
		DELETE FROM footplate.versions WHERE version > 1`)
	a = opened(t, server.URL(db), "c1")
	_, err := a.Verify(within(t), 0)
	ok(t, err)
	server.Exec(t, db, "SELECT * FROM footplate.today")
}

// What stands in the way is said in the operator's words, and the password is
// never among them.
func TestOpenRefuses(t *testing.T) {
	const secret = "s3cr%25et/p@ss"
	for _, bad := range []string{
		"postgres://u:" + url.QueryEscape(secret) + "@host:notaport/x",
		"postgres://u:" + secret + "@[::1/x",
		"postgres://u:s3cr%zzet@host/x",
		"host=x password='s3cret port=y",
		"mysql://u:s3cret@host/x?sslmode=never",
		"postgres://u:s3cret@host/x?sslmode=never",
		"postgres://u:s3cret@host/x?pool_max_conns=many",
	} {
		_, err := New(bad, "c1")
		if fleet.CodeOf(err) != fleet.CodeInvalid {
			t.Errorf("%s: %v", bad, err)
			continue
		}
		if e := fleet.AsError(err); strings.Contains(e.Msg+e.Hint, "s3cr") {
			t.Errorf("%s shows the password: %v", bad, err)
		}
	}
	_, err := New("postgres://h/x", "")
	code(t, err, fleet.CodeInvalid)

	ready := server.Database(t)
	ok(t, closeOf(Open(within(t), server.URL(ready), "c1")))
	empty := server.Database(t)
	noright := login(t, empty, "nobody", "")
	nomember := login(t, ready, "nobody", "")
	latin := "latin_" + empty
	server.Exec(t, "postgres", "CREATE DATABASE "+latin+" ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
	t.Cleanup(func() { server.Exec(t, "postgres", "DROP DATABASE "+latin) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	nobody := l.Addr().String()
	ok(t, l.Close())
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	ok(t, err)
	defer func() { _ = silent.Close() }()

	for name, row := range map[string]struct {
		url  string
		want fleet.Code
		says string
		hint string
	}{
		"wrong password":     {strings.Replace(nomember, "hunter2", "s3cret", 1), fleet.CodeDenied, "password authentication failed for user", "check the user and the password"},
		"no such user":       {server.TCP(ready, "mallory", "s3cret"), fleet.CodeDenied, "password authentication failed for user", "check the user and the password"},
		"no such database":   {server.URL("nowhere"), fleet.CodeNotFound, `database "nowhere" does not exist`, "createdb nowhere"},
		"no right to create": {noright, fleet.CodeDenied, "cannot make the tables in the audit archive in postgres", "start footplate once with the url of a user who may"},
		"only a reader":      {login(t, ready, "reader", "IN ROLE footplate_reader"), fleet.CodeDenied, "may not write to the audit archive in", "GRANT footplate_writer TO"},
		"not a member":       {nomember, fleet.CodeDenied, "permission denied for schema footplate", "GRANT footplate_writer TO"},
		"not UTF8":           {server.URL(latin), fleet.CodeConflict, "has the encoding LATIN1", "ENCODING 'UTF8'"},
		"read-only":          {server.URL(empty) + "&default_transaction_read_only=on", fleet.CodeUnavailable, "read-only transaction", "target_session_attrs=read-write"},
		"nobody listens":     {"postgres://u:s3cret@" + nobody + "/x?sslmode=disable", fleet.CodeUnavailable, "connection refused", "is the server up"},
		"no answer":          {"postgres://u:s3cret@" + silent.Addr().String() + "/x?sslmode=disable&connect_timeout=1", fleet.CodeUnavailable, "no answer in time", "is the server up"},
		"no such host":       {"postgres://u:s3cret@db.invalid/x?connect_timeout=2", fleet.CodeUnavailable, "db.invalid", "is the server up"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Open(within(t), row.url, "c1")
			code(t, err, row.want)
			e := fleet.AsError(err)
			if !strings.Contains(e.Msg, row.says) || !strings.Contains(e.Hint, row.hint) {
				t.Errorf("it says %q (%s); want %q (%s)", e.Msg, e.Hint, row.says, row.hint)
			}
			if all := e.Msg + e.Hint; strings.Contains(all, "s3cret") || strings.Contains(all, "hunter2") {
				t.Errorf("it shows the password: %s", all)
			}
		})
	}
}

func closeOf(a *Archive, err error) error {
	if err == nil {
		a.Close()
	}
	return err
}

// Tables that somebody altered are named at once, not at the first entry that
// does not fit.
func TestAltered(t *testing.T) {
	for sql, says := range map[string]string{
		"DROP TABLE footplate.entries CASCADE":                                                             "footplate.entries is not there",
		"ALTER TABLE footplate.entries RENAME COLUMN reason TO why":                                        "footplate.entries has no column reason",
		"ALTER TABLE footplate.entries ALTER COLUMN count TYPE text":                                       "column count of footplate.entries is text, not bigint",
		"DROP FUNCTION footplate.add_month":                                                                "footplate_writer may not run footplate.add_month",
		"REVOKE EXECUTE ON FUNCTION footplate.erase FROM footplate_writer":                                 "footplate_writer may not run footplate.erase",
		"REVOKE INSERT ON footplate.entries FROM footplate_writer":                                         "footplate_writer may not insert into footplate.entries and select from it",
		"ALTER TABLE footplate.entries RENAME TO old; CREATE TABLE footplate.entries (LIKE footplate.old)": "footplate.entries is not partitioned",
		"INSERT INTO footplate.versions VALUES (99, 'of the future')":                                      "have version 99; this version of footplate knows 2",
	} {
		t.Run(says, func(t *testing.T) {
			a, db := open(t)
			entries := chained("", 1, 20)
			ok(t, a.Put(within(t), entries[:10]))
			if strings.Contains(sql, "count TYPE") {
				server.Exec(t, db, "DROP VIEW footplate.refusals, footplate.weeks")
			}
			server.Exec(t, db, sql)
			_, err := Open(within(t), server.URL(db), "c1")
			code(t, err, fleet.CodeConflict)
			if !strings.Contains(err.Error(), says) {
				t.Errorf("it says %q; want %q", err, says)
			}
			if strings.Contains(sql, "RENAME COLUMN") { // under a node that runs
				err := a.Put(within(t), entries[10:])
				code(t, err, fleet.CodeConflict)
				if Retryable(err) || !strings.Contains(err.Error(), "were altered") {
					t.Errorf("put says %q", err)
				}
			}
		})
	}
}

// A database that becomes read-only, or whose user loses a right, keeps its
// entries, says what is wrong, and takes the rest when that is mended.
func TestPutWhileMended(t *testing.T) {
	a, db := open(t)
	ctx := within(t)
	entries := chained("", 1, 20)
	ok(t, a.Put(ctx, entries[:5]))
	for i, row := range []struct {
		spoil, mend string
		want        fleet.Code
	}{
		{"REVOKE INSERT ON footplate.entries FROM footplate_writer", "GRANT INSERT ON footplate.entries TO footplate_writer", fleet.CodeDenied},
		{"ALTER TABLE footplate.entries ADD CONSTRAINT x CHECK (n < 5) NOT VALID", "ALTER TABLE footplate.entries DROP CONSTRAINT x", fleet.CodeConflict},
		{"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()", "SELECT 1", fleet.CodeUnavailable},
	} {
		server.Exec(t, db, row.spoil)
		if err := a.Put(ctx, entries[:10+i]); fleet.CodeOf(err) != row.want && row.want != fleet.CodeUnavailable {
			t.Fatalf("%s: %v", row.spoil, err)
		}
		server.Exec(t, db, row.mend)
		ok(t, a.Put(ctx, entries[:10+i]))
	}
	equal(t, stored(t, db, "c1"), entries[:12])
}

// What the server says is told apart by what a person has to do.
func TestExplain(t *testing.T) {
	a, err := New("postgres://u:s3cret@h/audit?sslmode=disable", "c1")
	ok(t, err)
	for sqlstate, want := range map[string]fleet.Code{
		"28P01": fleet.CodeDenied, "28000": fleet.CodeDenied, "42501": fleet.CodeDenied,
		"3D000": fleet.CodeNotFound,
		"53100": fleet.CodeUnavailable, "53200": fleet.CodeUnavailable, "53300": fleet.CodeUnavailable,
		"57014": fleet.CodeUnavailable, "57P01": fleet.CodeUnavailable, "57P03": fleet.CodeUnavailable,
		"08006": fleet.CodeUnavailable, "40001": fleet.CodeUnavailable, "40P01": fleet.CodeUnavailable,
		"25006": fleet.CodeUnavailable, "23505": fleet.CodeUnavailable, "55P03": fleet.CodeUnavailable,
		"42P01": fleet.CodeConflict, "42703": fleet.CodeConflict, "3F000": fleet.CodeConflict, "23502": fleet.CodeConflict,
		"XX000": fleet.CodeInternal, "22021": fleet.CodeInternal, "": fleet.CodeInternal,
	} {
		err := a.explain("write to", fmt.Errorf("x: %w", &pgconn.PgError{Code: sqlstate, Message: "the server's words, s3cret\nhere", Detail: "a row", Where: "a line"}))
		e := fleet.AsError(err)
		if e.Code != want || !strings.Contains(e.Msg, "the server's words, *** here") || strings.Contains(e.Msg, "a row") || strings.Contains(e.Msg, "a line") {
			t.Errorf("%s is %s: %s", sqlstate, e.Code, e.Msg)
		}
		if e.Hint == "" && want != fleet.CodeInternal {
			t.Errorf("%s has no hint", sqlstate)
		}
		if Retryable(err) != (want == fleet.CodeUnavailable) {
			t.Errorf("%s: retryable is %v", sqlstate, Retryable(err))
		}
	}
}

// The name of the database is for logs: it never has the password.
func TestString(t *testing.T) {
	a, err := New("postgres://u:s3cret@h:5433/audit?sslmode=disable", "c1")
	ok(t, err)
	if got := a.String(); got != `database "audit" at h:5433` || strings.Contains(fmt.Sprintf("%v %s", a, a), "s3cret") {
		t.Errorf("it is %s", got)
	}
	if os.Getenv("PGPASSWORD") != "" {
		t.Error("the tests should not depend on PGPASSWORD")
	}
}
