package catalog

import (
	"bytes"
	"encoding/json"
	"io"
	"strconv"
	"strings"

	"footplate/fleet"
)

// csvNames is the first line of an export as CSV.
var csvNames = [...]string{
	"n", "at", "by", "approved_by", "role", "via", "op", "args", "reason", "incident", "plan", "key",
	"outcome", "code", "text", "count", "erased", "prev", "hash",
}

// csvEntries takes an export as lines of JSON and writes its entries as CSV (RFC
// 4180), so that there is one way in which entries are selected and no gap in
// them goes unseen.
type csvEntries struct {
	w     io.Writer
	rest  []byte // a line whose end has not come
	lines int
	out   []byte
}

// Write takes a piece of the export.
func (c *csvEntries) Write(b []byte) (int, error) {
	c.rest = append(c.rest, b...)
	c.out = c.out[:0]
	at := 0
	for {
		i := bytes.IndexByte(c.rest[at:], '\n')
		if i < 0 {
			break
		}
		if err := c.line(c.rest[at : at+i]); err != nil {
			return 0, err
		}
		at += i + 1
	}
	c.rest = append(c.rest[:0], c.rest[at:]...)
	if len(c.out) > 0 {
		if _, err := c.w.Write(c.out); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

func (c *csvEntries) line(line []byte) error {
	c.lines++
	if c.lines == 1 { // the header
		c.out = append(AppendCSV(c.out, csvNames[:]), '\r', '\n')
		return nil
	}
	if !bytes.HasPrefix(line, []byte(`{"n":`)) {
		return nil // the trailer
	}
	var e fleet.Entry
	if err := json.Unmarshal(line, &e); err != nil {
		return fleet.Internalf("an entry of the export cannot be read: %s", err)
	}
	approved := make([]string, len(e.ApprovedBy))
	for i, p := range e.ApprovedBy {
		approved[i] = string(p)
	}
	var erased []string
	for _, f := range erasable {
		if _, ok := e.Erased[f]; ok {
			erased = append(erased, f)
		}
	}
	repeats := ""
	if e.Count > 0 {
		repeats = strconv.Itoa(e.Count)
	}
	c.row(strconv.FormatUint(uint64(e.N), 10), e.At.String(), string(e.By), strings.Join(approved, " "), string(e.Role), e.Via, e.Op,
		string(e.Args), e.Reason, e.Incident, e.Plan, e.Key, string(e.Outcome), string(e.Code), e.Text, repeats,
		strings.Join(erased, " "), e.Prev, e.Hash)
	return nil
}

// close says whether the export came to its end.
func (c *csvEntries) close() error {
	if len(c.rest) > 0 {
		return fleet.Internalf("the export ends in the middle of a line")
	}
	return nil
}

func (c *csvEntries) row(cells ...string) {
	for i, s := range cells {
		cells[i] = Cell(s)
	}
	c.out = append(AppendCSV(c.out, cells), '\r', '\n')
}

// AppendCSV appends cells to out as a line of CSV, whose end is left to the
// caller: spreadsheets are used to one, shells to another.
func AppendCSV(out []byte, cells []string) []byte {
	for i, s := range cells {
		if i > 0 {
			out = append(out, ',')
		}
		if !strings.ContainsAny(s, ",\"\r\n") {
			out = append(out, s...)
			continue
		}
		out = append(out, '"')
		out = append(out, strings.ReplaceAll(s, `"`, `""`)...)
		out = append(out, '"')
	}
	return out
}

// Cell returns s as it may stand in a spreadsheet: with a ' in front when it
// would be taken for a formula.
func Cell(s string) string {
	if s != "" && strings.IndexByte("=+-@\t\r", s[0]) >= 0 {
		return "'" + s
	}
	return s
}
