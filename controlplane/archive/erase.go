package archive

import (
	"context"

	"footplate/fleet"
)

// Erase erases fields of an entry: it is written anew without them, and the
// chain is as whole as before. It reports whether there was something to erase.
// The error has fleet.CodeNotFound when the entry is not here (yet).
func (a *Archive) Erase(ctx context.Context, n fleet.EntryNo, fields []string) (changed bool, err error) {
	e, err := a.Get(ctx, n)
	if err != nil {
		return false, err
	}
	if why := e.Unsound(); why != "" {
		return false, fleet.Conflictf("entry %d cannot be erased: it is not intact: %s", n, why).WithHint("see footplate audit verify")
	}
	before := len(e.Erased)
	for _, f := range fields {
		if err := e.Erase(f); err != nil {
			return false, err
		}
	}
	if len(e.Erased) == before {
		return false, nil
	}
	a.Append([]fleet.Entry{e})
	if err := a.settle(ctx); err != nil {
		return false, err
	}
	if err := a.Err(); err != nil {
		return false, err
	}
	return true, nil
}
