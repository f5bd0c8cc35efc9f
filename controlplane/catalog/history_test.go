package catalog

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"footplate/controlplane/state"
)

var record = flag.String("record", "", "record testdata/history/NAME.script anew: only before NAME was released")

// checkpointEvery is how many log entries lie between two digests of a history.
const checkpointEvery = 20

// TestHistory replays the recorded logs of each release: they give the same
// state for ever. A digest that differs means that Apply does something else
// than it did, and that nodes of two versions would part: give the operation a
// new version (op.Spec.Ver) and keep the old function for the old one.
func TestHistory(t *testing.T) {
	if *record != "" {
		recordHistory(t, *record)
	}
	logs, err := filepath.Glob("testdata/history/*.log")
	if err != nil || len(logs) == 0 {
		t.Fatalf("there is no history: %v", err)
	}
	for _, path := range logs {
		t.Run(filepath.Base(path), func(t *testing.T) {
			batches := readHistory(t, path)
			want, err := os.ReadFile(strings.TrimSuffix(path, ".log") + ".digests")
			if err != nil {
				t.Fatal(err)
			}
			for _, half := range []int{-1, len(batches) / 2} {
				got, err := checkpoints(batches, half)
				if err != nil {
					t.Fatal(err)
				}
				if got != string(want) {
					old := strings.Split(string(want), "\n")
					for i, line := range strings.Split(got, "\n") {
						if i >= len(old) || line != old[i] {
							t.Fatalf("with a snapshot at %d, the first difference is %q", half, line)
						}
					}
					t.Fatalf("with a snapshot at %d it ends too early", half)
				}
			}
		})
	}
}

// checkpoints replays batches, and returns lines of index, digest, number of
// entries and head of the chain. At half the state goes through a snapshot.
func checkpoints(batches [][]byte, half int) (string, error) {
	var out strings.Builder
	reg, st := All(), state.New()
	for i, data := range batches {
		if i == half {
			var b bytes.Buffer
			if err := st.Publish().Dump(&b); err != nil {
				return "", err
			}
			var err error
			if st, err = state.Load(&b); err != nil {
				return "", err
			}
		}
		if _, err := replay(reg, st, data); err != nil {
			return "", err
		}
		st.Publish()
		if (i+1)%checkpointEvery == 0 || i == len(batches)-1 {
			fmt.Fprintf(&out, "%d %s %d %s\n", st.Index, st.Digest(), st.Entry, st.Head)
		}
	}
	return out.String(), nil
}

// readHistory reads batches, each with its length before it (4 bytes, little
// endian).
func readHistory(t *testing.T, path string) [][]byte {
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out [][]byte
	for r := bytes.NewReader(data); r.Len() > 0; {
		var n uint32
		if err := binary.Read(r, binary.LittleEndian, &n); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			t.Fatal(err)
		}
		out = append(out, b)
	}
	return out
}

// recordHistory plays the script of that name, each line a log entry, but for
// every seventh, which is packed with the one after it.
func recordHistory(t *testing.T, name string) {
	base := filepath.Join("testdata/history", name)
	script, err := os.ReadFile(base + ".script")
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	lines := strings.Split(strings.TrimSpace(string(script)), "\n")
	for i := 0; i < len(lines); i++ {
		pair := lines[i:min(i+2, len(lines))]
		timed := slices.ContainsFunc(pair, func(l string) bool { return strings.HasPrefix(l, "time ") })
		if i%7 == 0 && len(pair) == 2 && !timed {
			t.Log(strings.Join(pair, "\n"), "\n->", w.batch(pair))
			i++
			continue
		}
		t.Log(lines[i], "\n->", w.do(lines[i]))
	}
	w.replicas()
	var log []byte
	for _, b := range w.log {
		log = binary.LittleEndian.AppendUint32(log, uint32(len(b)))
		log = append(log, b...)
	}
	digests, err := checkpoints(w.log, -1)
	if err != nil {
		t.Fatal(err)
	}
	for path, data := range map[string][]byte{base + ".log": log, base + ".digests": []byte(digests)} {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
