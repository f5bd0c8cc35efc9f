package state

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"

	"footplate/fleet"
)

// specs holds one copy of each spec that builds have, however many submissions
// brought it, for as long as a build has it. It is no part of the state: two
// replicas of which one shares and the other doesn't are the same.
type specs struct {
	bySum map[[sha256.Size]byte]*fleet.BuildSpec
	held  map[*fleet.BuildSpec]*holding
}

type holding struct {
	sum    [sha256.Size]byte
	builds int
}

func newSpecs() *specs {
	return &specs{bySum: make(map[[sha256.Size]byte]*fleet.BuildSpec), held: make(map[*fleet.BuildSpec]*holding)}
}

// ShareSpec returns the copy of spec that the builds which have the same share.
// Nobody may write to it, nor to spec from then on.
func (st *State) ShareSpec(spec *fleet.BuildSpec) *fleet.BuildSpec {
	raw, err := json.Marshal(spec)
	if err != nil {
		panic("state: spec cannot be encoded: " + err.Error())
	}
	sum := sha256.Sum256(raw)
	if known := st.specs.bySum[sum]; known != nil {
		return known
	}
	st.specs.bySum[sum] = spec
	st.specs.held[spec] = &holding{sum: sum}
	return spec
}

// build counts the builds that have a spec, and lets go of one that none has.
func (s *specs) build(old, now *fleet.Build) {
	if now != nil {
		if h := s.held[now.Spec]; h != nil {
			h.builds++
		}
	}
	if old == nil {
		return
	}
	if h := s.held[old.Spec]; h != nil {
		h.builds--
		if h.builds <= 0 {
			delete(s.bySum, h.sum)
			delete(s.held, old.Spec)
		}
	}
}

// specRow is a spec in a snapshot: it stands before the first build that has it.
type specRow struct {
	N    int              `json:"n"` // dense, from 1
	Spec *fleet.BuildSpec `json:"spec"`
}

const specsTable = "specs"

// buildRow is a build in a snapshot. Its spec is the one with the number.
type buildRow struct {
	K fleet.BuildID `json:"k"`
	V uint64        `json:"v"`
	S int           `json:"s"`
	R fleet.Build   `json:"r"`
}

// dumpBuilds writes the builds, and each spec that they share once.
func (v *View) dumpBuilds(name string, emit func(table string, row any) error) error {
	numbers := make(map[*fleet.BuildSpec]int)
	var err error
	v.Builds.s.Ascend(0, func(k fleet.BuildID, r *rec[fleet.Build]) bool {
		row := buildRow{K: k, V: r.version, R: r.row}
		if spec := r.row.Spec; spec != nil {
			n, ok := numbers[spec]
			if !ok {
				n = len(numbers) + 1
				numbers[spec] = n
				if err = emit(specsTable, specRow{n, spec}); err != nil {
					return false
				}
			}
			row.S, row.R.Spec = n, nil
		}
		err = emit(name, row)
		return err == nil
	})
	return err
}

// specLoader puts the builds of a snapshot and their specs together again.
type specLoader struct {
	st    *State
	in    *strictReader
	specs []*fleet.BuildSpec
}

// spec takes a row of specsTable.
func (l *specLoader) spec(raw json.RawMessage) error {
	var row specRow
	if err := l.in.read(raw, &row); err != nil {
		return fmt.Errorf("row of %s: %w", specsTable, err)
	}
	if row.N != len(l.specs)+1 || row.Spec == nil {
		return fmt.Errorf("row of %s has number %d, and %d comes next", specsTable, row.N, len(l.specs)+1)
	}
	l.specs = append(l.specs, l.st.ShareSpec(row.Spec))
	return nil
}

// build takes a row of a build.
func (l *specLoader) build(raw json.RawMessage) error {
	var row buildRow
	if err := l.in.read(raw, &row); err != nil {
		return fmt.Errorf("row of builds: %w", err)
	}
	if row.S < 0 || row.S > len(l.specs) {
		return fmt.Errorf("row of builds names spec %d of %d", row.S, len(l.specs))
	}
	if row.S > 0 {
		row.R.Spec = l.specs[row.S-1]
	}
	if row.K >= maxNumber {
		return fmt.Errorf("row of builds has number %v, which no row can have", row.K)
	}
	l.st.Builds.set(row.K, &rec[fleet.Build]{version: row.V, row: row.R})
	return nil
}
