package postgres

import (
	"context"
	"errors"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"footplate/fleet"
)

// explain turns what the driver says into what a person should read. doing is a
// verb: "reach", "write to". Of what the server says only the message is kept,
// because the rest may quote rows.
func (a *Archive) explain(doing string, err error) error {
	if err == nil {
		return nil
	}
	var own *fleet.Error
	if errors.As(err, &own) {
		return err
	}
	user := a.config.ConnConfig.User
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		why := err.Error()
		var op *net.OpError
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			why = "no answer in time"
		case errors.Is(err, context.Canceled):
			return err
		case errors.As(err, &op):
			why = op.Op + ": " + op.Err.Error()
		}
		return fleet.Unavailablef("cannot %s the audit archive in postgres %s: %s", doing, a, a.clean(why)).
			WithHint("is the server up, and reachable from here? entries wait on the nodes meanwhile")
	}
	msg := a.clean(pg.Message)
	fail := func(make func(string, ...any) *fleet.Error, hint string, args ...any) error {
		return make("cannot %s the audit archive in postgres %s: %s", doing, a, msg).WithHint(hint, args...)
	}
	switch class := pg.Code[:min(2, len(pg.Code))]; {
	case class == "28":
		return fail(fleet.Deniedf, "check the user and the password in the url, and pg_hba.conf of the server")
	case pg.Code == "3D000":
		return fail(fleet.NotFoundf, "make the database first: createdb %s", a.config.ConnConfig.Database)
	case pg.Code == "42501":
		if doing == "make the tables in" {
			return fail(fleet.Deniedf, "start footplate once with the url of a user who may make schemas and roles, then: GRANT %s TO %q", writer, user)
		}
		return fail(fleet.Deniedf, "as the owner of the database: GRANT %s TO %q", writer, user)
	case pg.Code == "25006":
		return fail(fleet.Unavailablef, "it is a standby, or was made read-only: give the url of the primary, or add target_session_attrs=read-write")
	case pg.Code == "53100":
		return fail(fleet.Unavailablef, "make room on the disk of the database server; entries wait on the nodes meanwhile")
	case class == "53":
		return fail(fleet.Unavailablef, "the database server is at its limits; entries wait on the nodes meanwhile")
	case class == "57" || class == "08" || class == "40" || pg.Code == "55P03" || pg.Code == "58030":
		return fail(fleet.Unavailablef, "it is tried again; entries wait on the nodes meanwhile")
	case pg.Code == "23514" && strings.Contains(pg.Message, "no partition"):
		return fail(fleet.Unavailablef, "somebody took a month away; it is made again")
	case pg.Code == "23505":
		return fail(fleet.Unavailablef, "another node delivers too; it is tried again")
	case class == "42" || class == "23" || pg.Code == "3F000":
		return fleet.Conflictf("the tables of the audit archive in postgres %s were altered: %s", a, msg).
			WithHint("put back what was changed")
	}
	return fleet.Internalf("cannot %s the audit archive in postgres %s: %s (SQLSTATE %s)", doing, a, msg, pg.Code)
}

// clean takes the password out of a text that should not have it anyway.
func (a *Archive) clean(text string) string {
	c := a.config.ConnConfig
	if c.Password != "" {
		text = strings.ReplaceAll(text, c.Password, "***")
	}
	return strings.Join(strings.Fields(text), " ")
}

// Retryable reports whether what failed with err may go well later without
// anybody doing something about it.
func Retryable(err error) bool {
	switch fleet.CodeOf(err) {
	case fleet.CodeUnavailable, fleet.CodeUnknown:
		return true
	}
	return errors.Is(err, context.DeadlineExceeded)
}
