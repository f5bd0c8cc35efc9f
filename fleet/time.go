package fleet

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Time is a moment on the state clock: milliseconds since 1970-01-01 UTC.
// Zero means "not yet" or "never". In JSON it is RFC 3339 in UTC with
// milliseconds, or null when it is zero.
type Time int64

// TimeOf converts t, rounding down to the millisecond.
func TimeOf(t time.Time) Time { return Time(t.UnixMilli()) }

// Std returns t as a time.Time in UTC.
func (t Time) Std() time.Time { return time.UnixMilli(int64(t)).UTC() }

// IsZero reports whether t is "not yet".
func (t Time) IsZero() bool { return t == 0 }

// Add returns t+d.
func (t Time) Add(d Duration) Time { return t + Time(d) }

// Sub returns t-u.
func (t Time) Sub(u Time) Duration { return Duration(t - u) }

const timeLayout = "2006-01-02T15:04:05.000Z"

func (t Time) String() string {
	if t == 0 {
		return ""
	}
	return t.Std().Format(timeLayout)
}

// MarshalJSON writes RFC 3339, or null for zero.
func (t Time) MarshalJSON() ([]byte, error) {
	if t == 0 {
		return []byte("null"), nil
	}
	b := make([]byte, 0, len(timeLayout)+2)
	b = append(b, '"')
	b = t.Std().AppendFormat(b, timeLayout)
	return append(b, '"'), nil
}

// UnmarshalJSON reads what MarshalJSON writes, and any other RFC 3339 time.
func (t *Time) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		*t = 0
		return nil
	}
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("time must be a string: %w", err)
	}
	return t.UnmarshalText([]byte(s))
}

// UnmarshalText reads RFC 3339.
func (t *Time) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*t = 0
		return nil
	}
	std, err := time.Parse(time.RFC3339Nano, string(b))
	if err != nil {
		return Invalidf("time %q is not RFC 3339", b).WithHint("for example 2026-11-21T03:00:00Z")
	}
	*t = TimeOf(std)
	return nil
}

// Duration is a length of time in milliseconds. As text and in JSON it reads
// "30m", "1h30m", "250ms"; days are written "2d".
type Duration int64

// The units of Duration.
const (
	Millisecond Duration = 1
	Second               = 1000 * Millisecond
	Minute               = 60 * Second
	Hour                 = 60 * Minute
	Day                  = 24 * Hour
)

// Std returns d as a time.Duration.
func (d Duration) Std() time.Duration { return time.Duration(d) * time.Millisecond }

// DurationOf converts d, rounding toward zero to the millisecond.
func DurationOf(d time.Duration) Duration { return Duration(d / time.Millisecond) }

func (d Duration) String() string {
	if d == 0 {
		return "0s"
	}
	var b strings.Builder
	n := uint64(d)
	if d < 0 {
		b.WriteByte('-')
		n = -n
	}
	for _, u := range []struct {
		ms   Duration
		name string
	}{{Day, "d"}, {Hour, "h"}, {Minute, "m"}, {Second, "s"}, {Millisecond, "ms"}} {
		if q := n / uint64(u.ms); q > 0 {
			b.WriteString(strconv.FormatUint(q, 10))
			b.WriteString(u.name)
			n %= uint64(u.ms)
		}
	}
	return b.String()
}

// ParseDuration reads what String writes: a sequence of whole numbers, each
// with a unit of d, h, m, s or ms, for example "1h30m". "0" needs no unit.
func ParseDuration(s string) (Duration, error) {
	bad := func() (Duration, error) {
		return 0, Invalidf("duration %q is not understood", s).WithHint("for example 30s, 5m, 1h30m or 2d")
	}
	rest, neg := strings.CutPrefix(s, "-")
	if rest == "0" {
		return 0, nil
	}
	if rest == "" {
		return bad()
	}
	var total Duration
	for rest != "" {
		i := 0
		for i < len(rest) && rest[i] >= '0' && rest[i] <= '9' {
			i++
		}
		j := i
		for j < len(rest) && (rest[j] < '0' || rest[j] > '9') {
			j++
		}
		n, err := strconv.ParseInt(rest[:i], 10, 64)
		if err != nil {
			return bad()
		}
		var unit Duration
		switch rest[i:j] {
		case "ms":
			unit = Millisecond
		case "s":
			unit = Second
		case "m":
			unit = Minute
		case "h":
			unit = Hour
		case "d":
			unit = Day
		default:
			return bad()
		}
		const most = Duration(1<<63 - 1)
		if Duration(n) > (most-total)/unit {
			return bad()
		}
		total += Duration(n) * unit
		rest = rest[j:]
	}
	if neg {
		total = -total
	}
	return total, nil
}

// MarshalText writes String's form.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads ParseDuration's form.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := ParseDuration(string(b))
	if err != nil {
		return err
	}
	*d = v
	return nil
}
