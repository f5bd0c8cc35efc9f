package page

import (
	"context"
	"encoding/json"
	"net/http"
	"reflect"
	"slices"
	"strconv"

	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/fleet"
)

// search is the operation behind the explorer of the record: what it can filter
// by, the explorer can.
func (p *Page) search() *op.Op {
	if o, ok := p.cfg.Registry.Get("audit search"); ok && o.Kind == op.KindQuery && o.Many {
		return o
	}
	return catalog.AuditTail
}

// audit lists entries of the record, newest first: GET /audit.
func (p *Page) audit(w http.ResponseWriter, r *http.Request, v *visit) error {
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	l, err := v.list(ctx, p.search(), r)
	if v.expired.Load() {
		return err
	}
	l.Title, l.Err = "audit", fleet.AsError(err)
	// The newest first, whatever the order of the answer.
	if n := len(l.Grid.Rows); n > 1 && entryOf(l.Grid.Rows[0]) < entryOf(l.Grid.Rows[n-1]) {
		slices.Reverse(l.Grid.Rows)
	}
	p.views.page(w, statusOf(err), "audit", v, "audit", l)
	return nil
}

// entryOf returns the number that a row begins with.
func entryOf(row []cell) uint64 {
	n, _ := strconv.ParseUint(row[0].Text, 10, 64)
	return n
}

// entryView is an entry's own page.
type entryView struct {
	catalog.EntryDetail
	Previous, Next fleet.EntryNo
	Arguments      string
	Fields         []field
	Age            string
}

// entry shows one entry: GET /audit/12.
func (p *Page) entry(w http.ResponseWriter, r *http.Request, v *visit) error {
	n, err := strconv.ParseUint(r.PathValue("entry"), 10, 64)
	if err != nil || n == 0 {
		return fleet.NotFoundf("%q is no number of an entry", visible(r.PathValue("entry")))
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	raw, _, err := v.api.Query(ctx, catalog.AuditShow, &catalog.AuditShowArgs{Entry: fleet.EntryNo(n)}, true)
	if err != nil {
		return err
	}
	out := entryView{Previous: fleet.EntryNo(n - 1), Next: fleet.EntryNo(n + 1)}
	if err := json.Unmarshal(raw, &out.EntryDetail); err != nil {
		return fleet.Internalf("the entry cannot be read: %s", err)
	}
	out.Arguments = indent(out.Args)
	for _, f := range shapeOfRow(reflect.ValueOf(out.EntryDetail), true).Fields {
		switch f.Name {
		case "n", "args", "text", "outcome", "at": // shown by themselves
		default:
			out.Fields = append(out.Fields, f)
		}
	}
	p.views.page(w, http.StatusOK, "entry", v, "entry "+strconv.FormatUint(n, 10), out)
	return nil
}
