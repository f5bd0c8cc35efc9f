package archive

import (
	"slices"

	"footplate/fleet"
)

// span is a range of numbers, both ends included.
type span struct {
	From fleet.EntryNo `json:"from"`
	To   fleet.EntryNo `json:"to"`
}

// spans is a set of numbers: ascending, apart from one another by at least one.
type spans []span

// covers reports whether all numbers of the range are in s; an empty range is.
func (s spans) covers(from, to fleet.EntryNo) bool {
	if from > to {
		return true
	}
	for _, p := range s {
		if p.From <= from && from <= p.To {
			return to <= p.To
		}
	}
	return false
}

func (s spans) last() fleet.EntryNo {
	if len(s) == 0 {
		return 0
	}
	return s[len(s)-1].To
}

// gap returns the newest range of numbers from 1 to upto that is not in s.
func (s spans) gap(upto fleet.EntryNo) (from, to fleet.EntryNo) {
	for i := len(s) - 1; i >= 0 && upto > 0; i-- {
		if s[i].To < upto {
			return s[i].To + 1, upto
		}
		upto = s[i].From - 1
	}
	if upto == 0 {
		return 0, 0
	}
	return 1, upto
}

// add returns s with the range added. It may write to s.
func (s spans) add(from, to fleet.EntryNo) spans {
	i := 0
	for i < len(s) && s[i].To+1 < from {
		i++
	}
	j := i
	for j < len(s) && s[j].From <= to+1 {
		from, to = min(from, s[j].From), max(to, s[j].To)
		j++
	}
	return slices.Replace(s, i, j, span{from, to})
}
