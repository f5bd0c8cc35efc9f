package postgres

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"footplate/fleet"
)

//go:embed migrations/*.sql
var migrations embed.FS

// migration is one step of the tables.
type migration struct {
	version int
	name    string
	sql     string
}

// steps returns the embedded migrations in their order. Their numbers are dense.
func steps() ([]migration, error) {
	names, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var list []migration
	for i, name := range names {
		b, err := migrations.ReadFile(name)
		if err != nil {
			return nil, err
		}
		name = strings.TrimSuffix(strings.TrimPrefix(name, "migrations/"), ".sql")
		digits, rest, _ := strings.Cut(name, "_")
		if v, err := strconv.Atoi(digits); err != nil || v != i+1 {
			return nil, fmt.Errorf("migration %q should have the number %d", name, i+1)
		}
		list = append(list, migration{i + 1, rest, string(b)})
	}
	return list, nil
}

// migrate brings the tables up to date, in one transaction. Any number of nodes
// may do it at once.
func (a *Archive) migrate(ctx context.Context, conn *pgx.Conn) error {
	list, err := steps()
	if err != nil {
		return err
	}
	newest := list[len(list)-1].version
	// Asked without a lock first, because mostly there is nothing to do, and
	// because most users may not do it.
	version, err := a.version(ctx, conn)
	if err != nil {
		return err
	}
	if version < newest {
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtextextended('footplate migration', 0))"); err != nil {
				return err
			}
			if version, err = a.version(ctx, tx.Conn()); err != nil {
				return err
			}
			if version == 0 {
				if err := a.create(ctx, tx); err != nil {
					return err
				}
			}
			for _, m := range list[min(version, len(list)):] {
				if _, err := tx.Exec(ctx, m.sql, pgx.QueryExecModeSimpleProtocol); err != nil {
					return fmt.Errorf("migration %d (%s): %w", m.version, m.name, err)
				}
				if _, err := tx.Exec(ctx, "INSERT INTO footplate.versions (version, name) VALUES ($1, $2)", m.version, m.name); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			var e *fleet.Error
			if errors.As(err, &e) {
				return e
			}
			return a.explain("make the tables in", err)
		}
		version = max(version, newest)
	}
	if version > newest {
		return fleet.Conflictf("the tables in %s have version %d; this version of footplate knows %d", a, version, newest).
			WithHint("upgrade this node: a newer footplate has changed them")
	}
	return nil
}

// version returns the version of the tables, 0 when there are none.
func (a *Archive) version(ctx context.Context, conn *pgx.Conn) (int, error) {
	var there bool
	err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace WHERE s.nspname = 'footplate' AND c.relname = 'versions')").Scan(&there)
	if err != nil {
		return 0, a.explain("look at", err)
	}
	if !there {
		return 0, nil
	}
	var v int
	if err := conn.QueryRow(ctx, "SELECT coalesce(max(version), 0) FROM footplate.versions").Scan(&v); err != nil {
		return 0, a.explain("look at", err)
	}
	return v, nil
}

// create makes what the migrations stand on.
func (a *Archive) create(ctx context.Context, tx pgx.Tx) error {
	var encoding string
	if err := tx.QueryRow(ctx, "SHOW server_encoding").Scan(&encoding); err != nil {
		return err
	}
	if encoding != "UTF8" {
		return fleet.Conflictf("%s has the encoding %s, which cannot hold every entry", a, encoding).
			WithHint("make a database with ENCODING 'UTF8' TEMPLATE template0")
	}
	for _, sql := range []string{
		"CREATE SCHEMA IF NOT EXISTS footplate",
		`CREATE TABLE IF NOT EXISTS footplate.versions (
			version int PRIMARY KEY,
			name    text NOT NULL,
			at      timestamptz NOT NULL DEFAULT now(),
			by      text NOT NULL DEFAULT session_user
		)`,
	} {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// inspect says what stands between this user and the archive: a role that it
// lacks, or tables that somebody altered.
func (a *Archive) inspect(ctx context.Context, conn *pgx.Conn) error {
	var user string
	var member bool
	err := conn.QueryRow(ctx, "SELECT session_user, coalesce((SELECT pg_has_role(session_user, oid, 'MEMBER') FROM pg_roles WHERE rolname = $1), false)", writer).
		Scan(&user, &member)
	if err != nil {
		return a.explain("look at", err)
	}
	if !member {
		return fleet.Deniedf("postgres user %q may not write to the audit archive in %s", user, a).
			WithHint("as the owner of the database: GRANT %s TO %q", writer, user)
	}
	have := make(map[string]string)
	rows, err := conn.Query(ctx, `SELECT a.attname, format_type(a.atttypid, NULL) FROM pg_attribute a
		WHERE a.attrelid = to_regclass('footplate.entries') AND a.attnum > 0 AND NOT a.attisdropped`)
	if err != nil {
		return a.explain("look at", err)
	}
	var name, kind string
	if _, err := pgx.ForEachRow(rows, []any{&name, &kind}, func() error {
		have[name] = kind
		return nil
	}); err != nil {
		return a.explain("look at", err)
	}
	altered := func(format string, args ...any) error {
		return fleet.Conflictf("the tables in %s were altered: %s", a, fmt.Sprintf(format, args...)).
			WithHint("put back what was changed; the definition is in the migrations of package controlplane/archive/postgres")
	}
	if len(have) == 0 {
		return altered("footplate.entries is not there")
	}
	for _, c := range new(row).columns() {
		switch kind, ok := have[c.name]; {
		case !ok:
			return altered("footplate.entries has no column %s", c.name)
		case kind != c.kind:
			return altered("column %s of footplate.entries is %s, not %s", c.name, kind, c.kind)
		}
	}
	var partitioned, insert, month, erase bool
	err = conn.QueryRow(ctx, `SELECT
		(SELECT relkind = 'p' FROM pg_class WHERE oid = 'footplate.entries'::regclass),
		has_table_privilege($1, 'footplate.entries', 'INSERT') AND has_table_privilege($1, 'footplate.entries', 'SELECT'),
		coalesce(has_function_privilege($1, to_regprocedure('footplate.add_month(date)'), 'EXECUTE'), false),
		coalesce(has_function_privilege($1, to_regprocedure('footplate.erase(text, bigint, text)'), 'EXECUTE'), false)`, writer).
		Scan(&partitioned, &insert, &month, &erase)
	switch {
	case err != nil:
		return a.explain("look at", err)
	case !partitioned:
		return altered("footplate.entries is not partitioned")
	case !insert:
		return altered("%s may not insert into footplate.entries and select from it", writer)
	case !month:
		return altered("%s may not run footplate.add_month", writer)
	case !erase:
		return altered("%s may not run footplate.erase", writer)
	}
	return nil
}
