package state

import (
	"encoding/binary"
	"encoding/json"
	"fmt"

	"github.com/cespare/xxhash/v2"
)

// digest is a sum of row hashes, modulo 2^64: the order in which rows were
// written leaves no trace in it. It guards against replicas that went different
// ways by mistake, not against a forger (the chain of entries does that), so a
// fast hash serves: xxHash, 64 bits.
type digest uint64

// summer is implemented by the rows that nearly every command writes: they
// write what they hold in a form that costs less than JSON. What survives a way
// through JSON must give the same bytes before and after.
type summer interface{ appendSum(b []byte) []byte }

// hashRow hashes a row of a table with its key and its version.
func (t *Table[K, R]) hashRow(k K, r *rec[R]) digest {
	b := append(t.j.sum[:0], t.name...)
	b = t.appendKey(append(b, 0), k)
	b = binary.LittleEndian.AppendUint64(b, r.version)
	switch row := any(&r.row).(type) {
	case summer:
		b = row.appendSum(b)
	case *string:
		b = sumText(b, *row)
	default:
		raw, err := json.Marshal(row)
		if err != nil {
			panic(fmt.Sprintf("state: row %v of %s cannot be encoded: %v", k, t.name, err))
		}
		b = append(b, raw...)
	}
	t.j.sum = b
	return digest(xxhash.Sum64(b))
}

func sumText[S ~string | ~[]byte](b []byte, s S) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func sumNumber[N ~int | ~int64 | ~uint64](b []byte, n N) []byte {
	return binary.LittleEndian.AppendUint64(b, uint64(n))
}

func (r *Remembered) appendSum(b []byte) []byte {
	b = sumText(b, r.ID)
	b = sumText(b, r.Op)
	b = sumText(b, r.Args)
	b = sumNumber(b, r.At)
	o := &r.Outcome
	b = sumNumber(b, o.Entry)
	b = sumText(b, o.Text)
	b = sumText(b, o.Result)
	if o.Duplicate {
		b = append(b, 1)
	}
	if o.Err != nil {
		raw, err := json.Marshal(o.Err)
		if err != nil {
			panic("state: outcome of " + r.ID + " cannot be encoded: " + err.Error())
		}
		b = append(b, raw...)
	}
	return b
}

func (p *Parcel) appendSum(b []byte) []byte {
	b = sumNumber(b, p.N)
	b = sumNumber(b, p.Entry)
	b = sumText(b, p.Show)
	return p.Line.appendSum(b)
}

func (l *Line) appendSum(b []byte) []byte {
	b = sumNumber(b, l.N)
	b = sumNumber(b, l.At)
	b = sumText(b, l.By)
	b = sumText(b, l.Via)
	b = sumText(b, l.Op)
	b = sumText(b, l.Outcome)
	b = sumText(b, l.Text)
	b = sumText(b, l.Reason)
	b = sumNumber(b, l.First)
	b = sumNumber(b, l.Last)
	b = sumNumber(b, l.Count)
	if l.Group {
		b = append(b, 1)
	}
	return b
}
