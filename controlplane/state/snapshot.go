package state

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// A snapshot is lines of JSON: a head with the meta, a line a row, and a tail
// with the number of rows and the SHA-256 of all that stands before it.
const (
	snapshotFormat  = "footplate.snapshot"
	snapshotVersion = 2 // 2: specs that builds share
)

type snapshotHead struct {
	Format  string `json:"format"`
	Version int    `json:"version"`
	Meta    Meta   `json:"meta"`
}

type snapshotRow struct {
	Table string `json:"t"`
	Row   any    `json:"row"`
}

type snapshotTail struct {
	Rows   int    `json:"rows"`
	SHA256 string `json:"sha256"`
}

// Dump writes v as a snapshot.
func (v *View) Dump(w io.Writer) error {
	sum := sha256.New()
	buf := bufio.NewWriterSize(io.MultiWriter(w, sum), 64<<10)
	enc := json.NewEncoder(buf)
	if err := enc.Encode(snapshotHead{snapshotFormat, snapshotVersion, v.Meta}); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	rows := 0
	emit := func(table string, row any) error {
		rows++
		return enc.Encode(snapshotRow{table, row})
	}
	for _, t := range v.tables() {
		if err := t.rows(t.name, emit); err != nil {
			return fmt.Errorf("write snapshot: %w", err)
		}
	}
	if err := buf.Flush(); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	tail, err := json.Marshal(snapshotTail{rows, hex.EncodeToString(sum.Sum(nil))})
	if err == nil {
		_, err = w.Write(append(tail, '\n'))
	}
	if err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	return nil
}

// Load reads what Dump wrote. An error says what is wrong with the snapshot;
// nothing of a bad one is used.
func Load(r io.Reader) (*State, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	sum := sha256.New()
	line, err := in.ReadBytes('\n')
	if err != nil {
		return nil, fmt.Errorf("snapshot has no head: it is empty or cut off")
	}
	sum.Write(line)
	// What a later version calls itself is told before the rest is looked at.
	var of struct {
		Format  string `json:"format"`
		Version int    `json:"version"`
	}
	if err := json.Unmarshal(line, &of); err != nil || of.Format != snapshotFormat {
		return nil, fmt.Errorf("snapshot is not a %s", snapshotFormat)
	}
	if of.Version != snapshotVersion {
		return nil, fmt.Errorf("snapshot has version %d; this program reads %d", of.Version, snapshotVersion)
	}
	lines, rows := newStrictReader(), newStrictReader()
	var head snapshotHead
	if err := rows.read(line, &head); err != nil {
		return nil, fmt.Errorf("head of snapshot: %w", err)
	}
	st := New()
	byName := make(map[string]anyTable, len(st.all))
	for _, t := range st.all {
		byName[t.tableName()] = t
	}
	specs := specLoader{st: st, in: rows}
	for n := 0; ; n++ {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return nil, fmt.Errorf("snapshot is cut off after %d rows", n)
		}
		var row struct {
			Table string          `json:"t"`
			Row   json.RawMessage `json:"row"`
			snapshotTail
		}
		if err := lines.read(line, &row); err != nil {
			return nil, fmt.Errorf("row %d of snapshot: %w", n+1, err)
		}
		if row.Table == "" {
			if row.Rows != n || row.SHA256 != hex.EncodeToString(sum.Sum(nil)) {
				return nil, fmt.Errorf("snapshot is damaged: its %d rows do not have the checksum in its tail", n)
			}
			break
		}
		sum.Write(line)
		switch row.Table {
		case specsTable:
			err = specs.spec(row.Row)
		case st.Builds.name:
			err = specs.build(row.Row)
		default:
			t := byName[row.Table]
			if t == nil {
				return nil, fmt.Errorf("row %d of snapshot is of table %q, which this program does not know", n+1, row.Table)
			}
			err = t.load(rows, row.Row)
		}
		if err != nil {
			return nil, fmt.Errorf("row %d of snapshot: %w", n+1, err)
		}
	}
	if _, err := in.ReadByte(); err != io.EOF {
		return nil, fmt.Errorf("snapshot goes on after its tail")
	}
	st.Meta = head.Meta
	st.j.index = head.Meta.Index
	st.j.undo = nil
	return st, nil
}

// strictReader reads JSON, and refuses a field that its type does not have: a
// later version's state is not to be loaded by halves. It is one reader for many
// values, because one each would cost a million rows a second.
type strictReader struct {
	in  bytes.Buffer
	dec *json.Decoder
}

func newStrictReader() *strictReader {
	r := new(strictReader)
	r.dec = json.NewDecoder(&r.in)
	r.dec.DisallowUnknownFields()
	return r
}

// read reads the one value in raw. After an error nothing more can be read.
func (r *strictReader) read(raw []byte, into any) error {
	raw = bytes.TrimSpace(raw) // nothing is left of it for the next
	before := r.dec.InputOffset()
	r.in.Write(raw)
	err := r.dec.Decode(into)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("unexpected end of JSON input")
	}
	if err != nil {
		if field, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
			return fmt.Errorf("it has a field %s, which this program does not know: it was written by a later version", field)
		}
		return err
	}
	if r.dec.InputOffset()-before < int64(len(raw)) {
		return fmt.Errorf("something stands after its end")
	}
	return nil
}
