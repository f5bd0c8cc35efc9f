package server

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestBrokenText(t *testing.T) {
	for _, row := range []struct {
		json, where string
		broken      bool
	}{
		{``, "", false},
		{`{"reason":"caf\u00e9 \ud83d\ude00 \\ud800","args":{"ud":["ü","\\\"ud"]}}`, "", false},
		{"{\"reason\":\"\xff\"}", "reason", true},
		{"{\"args\":{\"org\":\"acme\",\"run\":[\"true\",\"{[\\\",\",\"a\xe9b\"]},\"reason\":\"\xff\"}", "args.run[2]", true},
		{"{\"args\":{\"steps\":[{\"name\":\"a\"},{\"name\":\"\xc3\"}]}}", "args.steps[1].name", true},
		{"{\"a\":{\"b\":1},\"c\":[[],[2,{}]],\"d\":\"\xc3\"}", "d", true},
		{`{"reason":"\ud800"}`, "reason", true},
		{`{"reason":"\uD83d x"}`, "reason", true},
		{`{"reason":"\udc00\ud800"}`, "reason", true},
		{`{"reason":"\\\ud800"}`, "reason", true},
		{`{"key":"\ud83d\ude00","reason":"\ud83d\ude00\ude00"}`, "reason", true},
		{"{\"a\":1,\"\xff\":2}", "", true},
		{"\xff", "", true},
		{"{\"a\":\xff}", "a", true},
		{"]]\"\xff", "", true},
		{"{\"a\":\"\\", "", false},
		{"{\"a\":\"\\ud8", "", false},
	} {
		where, broken := brokenText([]byte(row.json))
		if where != row.where || broken != row.broken {
			t.Errorf("%q: %q, %t; want %q, %t", row.json, where, broken, row.where, row.broken)
		}
	}
}

// What is not refused reads as it was written: package encoding/json has put
// U+FFFD nowhere.
func FuzzBrokenText(f *testing.F) {
	f.Add([]byte(`{"reason":"\ud83d\ude00\ud800"}`))
	f.Add([]byte("{\"a\":[\"\xff\",{\"b\":\"\\\\\"}]}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, broken := brokenText(b)
		if !json.Valid(b) {
			return
		}
		meant := strings.ContainsRune(string(b), utf8.RuneError) || strings.Contains(strings.ToLower(string(b)), `\ufffd`)
		var v any
		if json.Unmarshal(b, &v) != nil || meant && utf8.Valid(b) {
			return
		}
		if got := hasReplacement(v); got != broken {
			t.Errorf("%q: broken is %t, and it reads as %q", b, broken, v)
		}
	})
}

func hasReplacement(v any) bool {
	switch v := v.(type) {
	case string:
		return strings.ContainsRune(v, utf8.RuneError)
	case []any:
		for _, e := range v {
			if hasReplacement(e) {
				return true
			}
		}
	case map[string]any:
		for k, e := range v {
			if hasReplacement(k) || hasReplacement(e) {
				return true
			}
		}
	}
	return false
}
