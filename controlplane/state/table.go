package state

import (
	"crypto/sha256"
	"encoding/binary"
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
	name    string
	parse   func(string) K // of a key as Seen names it
	j       *journal
	touched bool // since the last publication
	// onChange keeps what is derived from the rows; nil means absent.
	onChange func(old, now *R)

	sum   digest
	dirty []K           // rows written since the last digest, each once
	was   map[K]*rec[R] // what each was then; nil when absent
}

// anyTable is what the state does with every table alike.
type anyTable interface {
	tableName() string
	versionOf(key string) uint64
	digest() digest
	load(raw json.RawMessage) error
}

func newTable[K key, R any](name string, parse func(string) K, s store[K, R], j *journal) *Table[K, R] {
	return &Table[K, R]{
		Rows: Rows[K, R]{s: s},
		name: name, parse: parse, j: j, touched: true,
		was: make(map[K]*rec[R]),
	}
}

// named makes a table keyed by a name.
func named[K ~string, R any](name string, j *journal) *Table[K, R] {
	return newTable(name, func(s string) K { return K(s) }, newTree[K, R](), j)
}

// numbered makes a table keyed by a number that grows densely.
func numbered[K ~uint64, R any](name string, j *journal) *Table[K, R] {
	return newTable(name, func(s string) K {
		n, _ := strconv.ParseUint(s, 10, 64)
		return K(n)
	}, newPages[K, R](), j)
}

// Put stores row under k.
func (t *Table[K, R]) Put(k K, row R) {
	t.set(k, &rec[R]{version: t.j.index, row: row})
}

// Delete removes row k, if there is one.
func (t *Table[K, R]) Delete(k K) { t.set(k, nil) }

// set stores r under k, or removes k when r is nil, and notes how to undo it.
func (t *Table[K, R]) set(k K, r *rec[R]) {
	old := t.swap(k, r)
	if old == nil && r == nil {
		return
	}
	t.j.undo = append(t.j.undo, func() { t.swap(k, old) })
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
	if _, ok := t.was[k]; !ok && (old != nil || r != nil) {
		t.was[k] = old
		t.dirty = append(t.dirty, k)
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

// digest is a sum of row hashes, modulo 2^128 by halves: the order in which
// rows were written leaves no trace in it.
type digest struct{ a, b uint64 }

func (d *digest) add(o digest) { d.a += o.a; d.b += o.b }
func (d *digest) sub(o digest) { d.a -= o.a; d.b -= o.b }

func hashRow[K key, R any](table string, k K, r *rec[R]) digest {
	b, err := json.Marshal(struct {
		T string
		K K
		V uint64
		R *R
	}{table, k, r.version, &r.row})
	if err != nil {
		panic(fmt.Sprintf("state: row %v of %s cannot be encoded: %v", k, table, err))
	}
	sum := sha256.Sum256(b)
	return digest{binary.LittleEndian.Uint64(sum[:]), binary.LittleEndian.Uint64(sum[8:])}
}

// digest brings the sum up to date: only what was written since the last time
// is hashed.
func (t *Table[K, R]) digest() digest {
	for _, k := range t.dirty {
		if old := t.was[k]; old != nil {
			t.sum.sub(hashRow(t.name, k, old))
		}
		if now, ok := t.s.Get(k); ok {
			t.sum.add(hashRow(t.name, k, now))
		}
	}
	t.dirty = t.dirty[:0]
	clear(t.was)
	return t.sum
}

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

func (t *Table[K, R]) load(raw json.RawMessage) error {
	var s stored[K, R]
	if err := json.Unmarshal(raw, &s); err != nil {
		return fmt.Errorf("row of %s: %w", t.name, err)
	}
	if n, ok := t.s.(interface{ holds(K) bool }); ok && !n.holds(s.K) {
		return fmt.Errorf("row of %s has number %v, which no row can have", t.name, s.K)
	}
	t.set(s.K, &rec[R]{version: s.V, row: s.R})
	return nil
}
