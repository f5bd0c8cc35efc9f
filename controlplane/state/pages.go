package state

// pages stores rows that are numbered densely: two levels of arrays of
// pageSize, so that finding a row is two indexings, and a copy shares every
// page until it is written to. Numbers far below the newest cost nothing once
// their page is empty: its pointer is dropped.
type pages[K ~uint64, R any] struct {
	books []*book[R]
	len   int
	mine  *owner // books and pages of another owner are shared
}

// owner marks who may write to a page in place; only its identity counts.
type owner struct{ _ byte }

const (
	pageBits = 8
	pageSize = 1 << pageBits
)

type page[R any] struct {
	by   *owner
	used int
	rows [pageSize]*rec[R]
}

type book[R any] struct {
	by    *owner
	used  int
	pages [pageSize]*page[R]
}

func newPages[K ~uint64, R any]() store[K, R] {
	return &pages[K, R]{mine: new(owner)}
}

func split(k uint64) (b, p, r uint64) {
	return k >> (2 * pageBits), k >> pageBits & (pageSize - 1), k & (pageSize - 1)
}

// maxNumber bounds the numbers that a snapshot may name: the list of books is
// as long as the highest asks for, and a damaged digit must not take all memory.
const maxNumber = 1 << 38

// holds reports whether a row may have number k.
func (t *pages[K, R]) holds(k K) bool { return uint64(k) < maxNumber }

// Get returns row k.
func (t *pages[K, R]) Get(k K) (*rec[R], bool) {
	b, p, r := split(uint64(k))
	if b >= uint64(len(t.books)) || t.books[b] == nil || t.books[b].pages[p] == nil {
		return nil, false
	}
	row := t.books[b].pages[p].rows[r]
	return row, row != nil
}

// own returns the page of k, made or copied so that it may be written to.
func (t *pages[K, R]) own(k uint64) (*book[R], *page[R]) {
	b, p, _ := split(k)
	for b >= uint64(len(t.books)) {
		t.books = append(t.books, nil)
	}
	bk := t.books[b]
	switch {
	case bk == nil:
		bk = &book[R]{by: t.mine}
		t.books[b] = bk
	case bk.by != t.mine:
		c := *bk
		c.by = t.mine
		bk = &c
		t.books[b] = bk
	}
	pg := bk.pages[p]
	switch {
	case pg == nil:
		pg = &page[R]{by: t.mine}
		bk.pages[p] = pg
		bk.used++
	case pg.by != t.mine:
		c := *pg
		c.by = t.mine
		pg = &c
		bk.pages[p] = pg
	}
	return bk, pg
}

// Set stores row k.
func (t *pages[K, R]) Set(k K, row *rec[R]) (*rec[R], bool) {
	_, pg := t.own(uint64(k))
	_, _, r := split(uint64(k))
	old := pg.rows[r]
	pg.rows[r] = row
	if old == nil {
		pg.used++
		t.len++
	}
	return old, old != nil
}

// Delete removes row k, and its page and book when they are empty.
func (t *pages[K, R]) Delete(k K) (*rec[R], bool) {
	old, ok := t.Get(k)
	if !ok {
		return nil, false
	}
	b, p, r := split(uint64(k))
	bk, pg := t.own(uint64(k))
	pg.rows[r] = nil
	pg.used--
	t.len--
	if pg.used == 0 {
		bk.pages[p] = nil
		bk.used--
	}
	if bk.used == 0 {
		t.books[b] = nil
	}
	return old, true
}

// Ascend yields the rows from number from on.
func (t *pages[K, R]) Ascend(from K, f func(K, *rec[R]) bool) {
	fb, fp, fr := split(uint64(from))
	for b := fb; b < uint64(len(t.books)); b++ {
		bk := t.books[b]
		if bk == nil {
			continue
		}
		for p := range uint64(pageSize) {
			pg := bk.pages[p]
			if pg == nil || b == fb && p < fp {
				continue
			}
			for r := range uint64(pageSize) {
				if pg.rows[r] == nil || b == fb && p == fp && r < fr {
					continue
				}
				if !f(K(b<<(2*pageBits)|p<<pageBits|r), pg.rows[r]) {
					return
				}
			}
		}
	}
}

// Reverse yields every row, newest first.
func (t *pages[K, R]) Reverse(f func(K, *rec[R]) bool) {
	for b := len(t.books) - 1; b >= 0; b-- {
		bk := t.books[b]
		if bk == nil {
			continue
		}
		for p := pageSize - 1; p >= 0; p-- {
			pg := bk.pages[p]
			if pg == nil {
				continue
			}
			for r := pageSize - 1; r >= 0; r-- {
				if pg.rows[r] == nil {
					continue
				}
				if !f(K(b<<(2*pageBits)|p<<pageBits|r), pg.rows[r]) {
					return
				}
			}
		}
	}
}

// Len returns the number of rows.
func (t *pages[K, R]) Len() int { return t.len }

// Copy returns the rows as they are now. Each side becomes a new owner, so that
// whichever writes first copies the page that it writes to.
func (t *pages[K, R]) Copy() store[K, R] {
	c := &pages[K, R]{books: append([]*book[R](nil), t.books...), len: t.len, mine: new(owner)}
	t.mine = new(owner)
	return c
}
