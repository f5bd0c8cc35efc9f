// Package postgres keeps the audit log in a PostgreSQL database, for everybody
// who wants to ask it questions: the shared archive beside the one that each
// node embeds (package archive).
//
// The tables are in the schema footplate and are made by the embedded
// migrations. entries has a row an entry, in a partition a month. Its column
// body is the entry byte for byte as it is exported, because the hash covers
// the bytes of the arguments and no jsonb gives them back; it is what Verify
// reads. The other columns repeat it for questions, and the views ask the usual
// ones (Examples).
//
// Invariants. Entries are put in order and without a gap, each linked to the
// one before by its hash; so what the database has tells where delivery goes
// on, and nothing else needs to be remembered. An entry that is there is never
// replaced; the same entry put twice is there once; another entry under its
// number is a conflict. All statements but the migrations run as the role
// footplate_writer, which may insert and select. The one allowed change, to
// erase a field of an entry, is a function of the database that proves that
// the hash of the entry still fits.
//
// Several clusters may share a database. A cluster that was recovered goes on
// from an earlier entry, and what came after that entry is here already: each
// recovery epoch has a name of its own (fleet.ClusterName), under which its
// entries go on from where they follow on those of the epoch before.
//
// It does not decide who delivers (the leader does) nor what is recorded. The
// password of the database is in no error and in no log.
package postgres

import (
	"context"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"footplate/controlplane/archive"
	"footplate/fleet"
)

const (
	// writer is the role that everything but a migration runs as.
	writer = "footplate_writer"
	// connectTimeout bounds the making of a connection, unless the URL has a
	// bound of its own (connect_timeout).
	connectTimeout = 5 * time.Second
	// maxConns: one delivers, one verifies, one answers.
	maxConns = 4
)

// Archive is the audit log of one cluster in a PostgreSQL database. Its methods
// may be called by any number of goroutines at once.
type Archive struct {
	cluster  string
	after    archive.Anchor // what the first entry follows
	config   *pgxpool.Config
	lookBack fleet.EntryNo

	mu     sync.Mutex // held while the database is prepared
	pool   *pgxpool.Pool
	closed bool

	known  sync.Mutex
	sound  archive.Anchor         // newest entry up to which nothing was missing, when last looked
	months map[time.Time]struct{} // that have a partition
}

// New makes the archive of a cluster in the database that url names, without
// looking at it: that happens at the first use of a method, and again at the
// next if it failed.
func New(url, cluster string) (*Archive, error) {
	config, err := pgxpool.ParseConfig(url)
	if scheme, _, ok := strings.Cut(url, "://"); err != nil || ok && scheme != "postgres" && scheme != "postgresql" {
		// What the parser says may hold the password.
		return nil, fleet.Invalidf("the url of the postgres archive cannot be read").
			WithHint("postgres://USER:PASSWORD@HOST:5432/DATABASE?sslmode=verify-full")
	}
	if cluster == "" {
		return nil, fleet.Invalidf("the postgres archive needs the id of a cluster")
	}
	if config.ConnConfig.ConnectTimeout == 0 || !strings.Contains(url, "connect_timeout") {
		config.ConnConfig.ConnectTimeout = connectTimeout
	}
	if !strings.Contains(url, "pool_max_conns") {
		config.MaxConns = maxConns
	}
	if config.ConnConfig.RuntimeParams["application_name"] == "" {
		config.ConnConfig.RuntimeParams["application_name"] = "footplate"
	}
	// What waits for a lock must see afterwards what the one before it has stored,
	// and the functions mean what they say, whatever are the defaults of the database
	// or of the user.
	config.ConnConfig.RuntimeParams["default_transaction_isolation"] = "read committed"
	config.ConnConfig.RuntimeParams["standard_conforming_strings"] = "on"
	return &Archive{cluster: cluster, config: config, lookBack: lookBack, months: make(map[time.Time]struct{})}, nil
}

// After says that the entries under this cluster's name begin after an entry
// that is under another: the last of the recovery epoch before that is still part
// of the record. It is called before anything else.
func (a *Archive) After(last archive.Anchor) *Archive {
	a.after = last
	return a
}

// Open is New, and makes the tables or brings them up to date. It refuses a
// database whose tables are newer than this version, or were altered.
func Open(ctx context.Context, url, cluster string) (*Archive, error) {
	a, err := New(url, cluster)
	if err != nil {
		return nil, err
	}
	if _, err := a.ready(ctx); err != nil {
		return nil, err
	}
	return a, nil
}

// Close closes the connections. It waits for the calls that use them.
func (a *Archive) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	if a.pool != nil {
		a.pool.Close()
	}
}

// String names the database: where it is and as whom, without the password.
func (a *Archive) String() string {
	c := a.config.ConnConfig
	at := c.Host
	if !strings.HasPrefix(at, "/") {
		at = net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port)))
	}
	return "database \"" + c.Database + "\" at " + at
}

// ready returns the connections, after the first call of all has prepared the
// database.
func (a *Archive) ready(ctx context.Context) (*pgxpool.Pool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, fleet.Unavailablef("the postgres archive is closed")
	}
	if a.pool != nil {
		return a.pool, nil
	}
	conn, err := pgx.ConnectConfig(ctx, a.config.ConnConfig.Copy())
	if err != nil {
		return nil, a.explain("reach", err)
	}
	// The next call makes another.
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if err := a.migrate(ctx, conn); err != nil {
		return nil, err
	}
	if err := a.inspect(ctx, conn); err != nil {
		return nil, err
	}
	config := a.config.Copy()
	config.ConnConfig.RuntimeParams["role"] = writer
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, a.explain("reach", err)
	}
	a.pool = pool
	return pool, nil
}
