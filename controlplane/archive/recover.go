package archive

import (
	"bufio"
	"context"
	"fmt"
	"io"

	"footplate/fleet"
)

// importChunk is how many entries of an export are filled in at a time.
const importChunk = 1000

// Import fills the archive, which must be empty and run, from an export of the
// record: with the entries up to the head, which proves them. It returns the
// oldest that the export has. What the export has after the head is left out:
// it is of a history that is given up.
func (a *Archive) Import(ctx context.Context, r io.ReadSeeker, head Anchor) (first fleet.EntryNo, err error) {
	report, err := Verify(r, head)
	switch {
	case err != nil:
		return 0, err
	case report.Selected:
		return 0, fleet.Invalidf("the export is a selection of entries, and not the record").WithHint("footplate audit export without a selection writes it")
	case report.Count == 0 || report.First > head.N:
		return 0, fleet.Invalidf("the export begins after entry %d, which the snapshot ends with", head.N).
			WithHint("give the export that was made with the snapshot, or right after it")
	case report.Last < head.N:
		return 0, fleet.Invalidf("the export ends at entry %d, and the snapshot at entry %d", report.Last, head.N).
			WithHint("give one that was made after the snapshot: only the end proves what is before it")
	}
	if a.cluster != "" && !sameCluster(report.ClusterID, a.cluster) {
		return 0, fleet.Conflictf("the export is of cluster %s, not of %s", report.ClusterID, a.cluster)
	}
	if err := a.Expect(ctx, head.N, head.Hash); err != nil {
		return 0, err
	}
	// Entries are filled in from the newest backwards, and an export can only be
	// read forwards: first where the pieces begin, then piece by piece.
	starts, err := pieces(r, head.N)
	if err != nil {
		return 0, err
	}
	for i := len(starts) - 1; i >= 0; i-- {
		if _, err := r.Seek(starts[i], io.SeekStart); err != nil {
			return 0, fmt.Errorf("read audit export: %w", err)
		}
		in := lines{r: bufio.NewReaderSize(r, 64<<10)}
		var entries []fleet.Entry
		for len(entries) < importChunk {
			line, ok := in.next()
			if !ok {
				break
			}
			e, why := decode(line)
			if why != "" || e.N > head.N {
				break // the trailer, or what is left out
			}
			entries = append(entries, e)
		}
		if err := a.Fill(ctx, entries); err != nil {
			return 0, err
		}
	}
	return report.First, nil
}

// pieces returns the places in an export, which is sound, where every
// importChunk-th entry up to upto begins.
func pieces(r io.ReadSeeker, upto fleet.EntryNo) ([]int64, error) {
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("read audit export: %w", err)
	}
	in := lines{r: bufio.NewReaderSize(r, 64<<10)}
	header, _ := in.next()
	at := int64(len(header)) + 1
	var starts []int64
	for n := 0; ; n++ {
		line, ok := in.next()
		if !ok {
			return starts, nil
		}
		e, why := decode(line)
		if why != "" || e.N > upto {
			return starts, nil
		}
		if n%importChunk == 0 {
			starts = append(starts, at)
		}
		at += int64(len(line)) + 1
	}
}

func sameCluster(a, b string) bool {
	ida, _, erra := fleet.ParseCluster(a)
	idb, _, errb := fleet.ParseCluster(b)
	return erra == nil && errb == nil && ida == idb
}
