package catalog

import (
	"strings"
	"time"

	"footplate/fleet"
)

// Moment is a moment as people say it: RFC 3339, "2026-11-21 03:00" or
// "2026-11-21" in UTC, or how long ago it was, "2h ago" or "2h". It is a
// fleet.Time only when it is known what time it is.
type Moment string

// UnmarshalText reads a moment.
func (m *Moment) UnmarshalText(b []byte) error {
	if _, err := readMoment(string(b), 0); err != nil {
		return err
	}
	*m = Moment(b)
	return nil
}

// Of returns the moment, when it is now; the zero time when none is said.
func (m Moment) Of(now fleet.Time) fleet.Time {
	t, err := readMoment(string(m), now)
	if err != nil {
		return 0 // was refused when it was read
	}
	return t
}

func readMoment(s string, now fleet.Time) (fleet.Time, error) {
	if s == "" {
		return 0, nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.Parse(layout, s); err == nil {
			return max(fleet.TimeOf(t), 1), nil
		}
	}
	ago, err := fleet.ParseDuration(strings.TrimSuffix(s, " ago"))
	if err != nil || ago < 0 {
		return 0, fleet.Invalidf("moment %q is not understood", s).WithHint("for example '2h ago', 2026-11-21 or 2026-11-21T03:00:00Z")
	}
	return max(now.Add(-ago), 1), nil
}
