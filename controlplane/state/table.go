package state

import (
	"encoding/json"
	"fmt"
	"iter"
	"strconv"

	"github.com/tidwall/btree"
)

// key is what rows are ordered and found by.
type key interface {
	~string | ~uint64
}

// rec is one stored row. It is never written to after it was stored, so views
// share it.
type rec[R any] struct {
	version uint64 // index of the log entry that wrote it
	sum     digest // of the row, its key and its version
	row     R
}

// store holds the rows of a table in the order of their keys. Copy is O(1) or
// close to it: what is written afterwards to either side is copied first.
type store[K key, R any] interface {
	Get(k K) (*rec[R], bool)
	Set(k K, r *rec[R]) (old *rec[R], replaced bool)
	Delete(k K) (old *rec[R], deleted bool)
	Ascend(from K, f func(K, *rec[R]) bool)
	Reverse(f func(K, *rec[R]) bool)
	Len() int
	Copy() store[K, R]
}

// tree stores rows in a B-tree, for keys of any kind.
type tree[K key, R any] struct{ *btree.Map[K, *rec[R]] }

func newTree[K key, R any]() store[K, R] { return tree[K, R]{new(btree.Map[K, *rec[R]])} }

// Copy returns the tree as it is now.
func (t tree[K, R]) Copy() store[K, R] { return tree[K, R]{t.Map.Copy()} }

// Rows is a read-only table: the rows as they were when the view was taken.
// Reading it copies nothing but the row asked for.
type Rows[K key, R any] struct {
	s store[K, R]
}

// Get returns the row with key k.
func (t Rows[K, R]) Get(k K) (R, bool) {
	r, ok := t.s.Get(k)
	if !ok {
		var zero R
		return zero, false
	}
	return r.row, true
}

// Version returns the index of the log entry that last wrote row k, 0 when
// there is no such row.
func (t Rows[K, R]) Version(k K) uint64 {
	r, ok := t.s.Get(k)
	if !ok {
		return 0
	}
	return r.version
}

// Len returns the number of rows.
func (t Rows[K, R]) Len() int { return t.s.Len() }

// All yields every row in the order of the keys. As with From and Backward, a
// table must not be written to while it is ranged over: collect first.
func (t Rows[K, R]) All() iter.Seq2[K, R] {
	return func(yield func(K, R) bool) {
		var first K // the least of either kind
		t.s.Ascend(first, func(k K, r *rec[R]) bool { return yield(k, r.row) })
	}
}

// From yields the rows whose keys are at least k, in order.
func (t Rows[K, R]) From(k K) iter.Seq2[K, R] {
	return func(yield func(K, R) bool) {
		t.s.Ascend(k, func(k K, r *rec[R]) bool { return yield(k, r.row) })
	}
}

// Backward yields every row in the reverse order of the keys.
func (t Rows[K, R]) Backward() iter.Seq2[K, R] {
	return func(yield func(K, R) bool) {
		t.s.Reverse(func(k K, r *rec[R]) bool { return yield(k, r.row) })
	}
}

// Table is a replicated table: Rows that a Tx can write to.
type Table[K key, R any] struct {
	Rows[K, R]
	name  string
	parse func(string) K // of a key as Seen names it
	// appendKey writes a key for the digest.
	appendKey func([]byte, K) []byte
	j         *journal
	touched   bool // since the last publication
	// onChange keeps what is derived from the rows; nil means absent.
	onChange func(old, now *R)

	sum digest // of all rows
}

// anyTable is what the state does with every table alike.
type anyTable interface {
	tableName() string
	versionOf(key string) uint64
	digest() digest
	load(in *strictReader, raw json.RawMessage) error
}

// named makes a table keyed by a name.
func named[K ~string, R any](name string, j *journal) *Table[K, R] {
	return &Table[K, R]{
		Rows: Rows[K, R]{s: newTree[K, R]()}, name: name, j: j, touched: true,
		parse:     func(s string) K { return K(s) },
		appendKey: func(b []byte, k K) []byte { return sumText(b, k) },
	}
}

// numbered makes a table keyed by a number that grows densely.
func numbered[K ~uint64, R any](name string, j *journal) *Table[K, R] {
	return &Table[K, R]{
		Rows: Rows[K, R]{s: newPages[K, R]()}, name: name, j: j, touched: true,
		parse: func(s string) K {
			n, _ := strconv.ParseUint(s, 10, 64)
			return K(n)
		},
		appendKey: func(b []byte, k K) []byte { return sumNumber(b, k) },
	}
}

// Put stores row under k.
func (t *Table[K, R]) Put(k K, row R) {
	t.set(k, &rec[R]{version: t.j.index, row: row})
}

// Delete removes row k, if there is one.
func (t *Table[K, R]) Delete(k K) { t.set(k, nil) }

// set stores r under k, or removes k when r is nil, and notes how to undo it.
func (t *Table[K, R]) set(k K, r *rec[R]) {
	if r != nil && !t.j.scratch {
		r.sum = t.hashRow(k, r)
	}
	old := t.swap(k, r)
	if old == nil && r == nil {
		return
	}
	if t.j.doing {
		t.j.undo = append(t.j.undo, func() { t.swap(k, old) })
	}
	if t.j.rehearsal {
		var version uint64
		if old != nil {
			version = old.version
		}
		t.j.written = append(t.j.written, Seen{Table: t.name, Key: fmt.Sprint(k), Version: version})
	}
}

func (t *Table[K, R]) swap(k K, r *rec[R]) (old *rec[R]) {
	t.touched = true
	if r == nil {
		old, _ = t.s.Delete(k)
	} else {
		old, _ = t.s.Set(k, r)
	}
	if old != nil {
		t.sum -= old.sum
	}
	if r != nil {
		t.sum += r.sum
	}
	if t.onChange != nil {
		t.onChange(rowOf(old), rowOf(r))
	}
	return old
}

func rowOf[R any](r *rec[R]) *R {
	if r == nil {
		return nil
	}
	return &r.row
}

// publish returns the rows as they are now; later writes leave it as it is.
func (t *Table[K, R]) publish(last Rows[K, R]) Rows[K, R] {
	if !t.touched {
		return last
	}
	t.touched = false
	return Rows[K, R]{s: t.s.Copy()}
}

func (t *Table[K, R]) tableName() string           { return t.name }
func (t *Table[K, R]) versionOf(key string) uint64 { return t.Version(t.parse(key)) }

func (t *Table[K, R]) digest() digest { return t.sum }

// stored is a row in a snapshot.
type stored[K key, R any] struct {
	K K      `json:"k"`
	V uint64 `json:"v"`
	R R      `json:"r"`
}

func (t Rows[K, R]) dumpRows(name string, emit func(table string, row any) error) error {
	var err error
	var first K
	t.s.Ascend(first, func(k K, r *rec[R]) bool {
		err = emit(name, stored[K, R]{k, r.version, r.row})
		return err == nil
	})
	return err
}

func (t *Table[K, R]) load(in *strictReader, raw json.RawMessage) error {
	var s stored[K, R]
	if err := in.read(raw, &s); err != nil {
		return fmt.Errorf("row of %s: %w", t.name, err)
	}
	if n, ok := t.s.(interface{ holds(K) bool }); ok && !n.holds(s.K) {
		return fmt.Errorf("row of %s has number %v, which no row can have", t.name, s.K)
	}
	t.set(s.K, &rec[R]{version: s.V, row: s.R})
	return nil
}
