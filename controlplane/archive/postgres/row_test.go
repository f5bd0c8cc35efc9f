package postgres

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// FuzzObjects compares with a walk over what package encoding/json decodes.
func FuzzObjects(f *testing.F) {
	for _, s := range []string{`{"hosts":["a","b\"\u0041"],"builds":3,"build":-1.5e3,"pool":null}`, ` { "attempts" : [ {"id":"x","host":"y"}, 7, true ] } `, `[[{"id":1}]]`, `{"host":{"host":[["z"]]},"hosts":{"id":2}}`, `{"entries":[1,{"id":[5]}]}`, `"host"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, args string) {
		got := objects(nil, json.RawMessage(args))
		var want []string
		if json.Valid([]byte(args)) && len(args) > 2 {
			dec := json.NewDecoder(strings.NewReader(args))
			dec.UseNumber()
			want = slow(dec, "", false)
		}
		slices.Sort(want)
		if want = slices.Compact(want); !slices.Equal(got, want) {
			t.Errorf("%s names %q; want %q", args, got, want)
		}
	})
}

// slow takes a value from dec, token by token.
func slow(dec *json.Decoder, noun string, plural bool) (found []string) {
	token, err := dec.Token()
	if err != nil {
		panic(err)
	}
	switch v := token.(type) {
	case json.Delim:
		for dec.More() {
			of, many := noun, false
			if v == '{' {
				key, err := dec.Token()
				if err != nil {
					panic(err)
				}
				if of, many = nounOf(key.(string)); key == "id" {
					of = noun
				}
			}
			found = append(found, slow(dec, of, many)...)
		}
		if _, err := dec.Token(); err != nil {
			panic(err)
		}
	case string:
		if v != "" && noun != "" {
			found = append(found, object(noun, v))
		}
	case json.Number:
		if noun != "" && !plural {
			found = append(found, object(noun, v.String()))
		}
	}
	return found
}
