package op

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"footplate/controlplane/state"
	"footplate/fleet"

	"github.com/google/go-cmp/cmp"
)

// words is an error as a person reads it.
func words(err error) string {
	if err == nil {
		return ""
	}
	e := fleet.AsError(err)
	if e.Hint == "" {
		return string(e.Code) + ": " + e.Msg
	}
	return string(e.Code) + ": " + e.Msg + " / " + e.Hint
}

func TestSplit(t *testing.T) {
	for _, row := range []struct {
		line string
		want []string
		err  string
	}{
		{"", nil, ""},
		{" \t\n", nil, ""},
		{"pool scale linux +2", []string{"pool", "scale", "linux", "+2"}, ""},
		{"  a\tb\nc\r\n", []string{"a", "b", "c"}, ""},
		{`--reason 'monday ramp'`, []string{"--reason", "monday ramp"}, ""},
		{`--reason "it's on"`, []string{"--reason", "it's on"}, ""},
		{`--reason="a b"c`, []string{"--reason=a bc"}, ""},
		{`'' ""`, []string{"", ""}, ""},
		{`a\ b \"c '\'`, []string{"a b", `"c`, `\`}, ""},
		{`"a\"b"`, []string{`a"b`}, ""},
		{"\u201cmonday ramp\u201d \u2018x y\u2019", []string{"monday ramp", "x y"}, ""},
		{"\u201cit\u2019s on\u201d", []string{"it's on"}, ""},
		{"a\u00a0b", []string{"a", "b"}, ""},
		{"größe 火", []string{"größe", "火"}, ""},
		{`a 'b`, nil, "invalid: the quote ' is not closed"},
		{`a "b`, nil, `invalid: the quote " is not closed`},
		{`a \`, nil, "invalid: the command ends with a backslash"},
		{"a\x00b", nil, "invalid: the command has a zero byte"},
		{"a\xffb", nil, "invalid: the command is not valid UTF-8"},
		{strings.Repeat("x", MaxLine+1), nil, "invalid: the command is 16385 bytes long; at most 16384 are allowed"},
	} {
		got, err := Split(row.line)
		if words(err) != row.err || !slices.Equal(got, row.want) {
			t.Errorf("Split(%.40q) = %q, %s; want %q, %s", row.line, got, words(err), row.want, row.err)
		}
	}
}

func TestParse(t *testing.T) {
	full := everything{
		embedded: embedded{"d"}, Name: "green", Names: []string{"a", "-5"}, N: -7, Small: -128, U: 65535, On: true,
		For: 90 * fleet.Minute, At: 1_700_000_000_000, Size: Size{N: -2, Relative: true, given: true},
		Object: map[string]int{"a": 1}, List: []fleet.BuildID{3, 4}, Colours: []string{"red", "green", "red"},
	}
	for _, row := range []struct {
		line string
		op   string
		args any
		opts Options
		err  string
	}{
		{"org set acme", "org set", &orgArgs{"acme", 3}, Options{}, ""},
		{"org set acme --slots 4", "org set", &orgArgs{"acme", 4}, Options{}, ""},
		{"org set --slots=4 acme", "org set", &orgArgs{"acme", 4}, Options{}, ""},
		{"org set \u2014slots 4 acme", "org set", &orgArgs{"acme", 4}, Options{}, ""},
		{"org set -- --slots", "org set", &orgArgs{"--slots", 3}, Options{}, ""},
		{"org set -", "org set", &orgArgs{"-", 3}, Options{}, ""},
		{"org dump noted", "org dump noted", &struct{}{}, Options{}, ""},
		{"org set acme --reason 'monday ramp' --dry-run --yes --idempotency-key k --incident inc --stale=false -o json", "org set",
			&orgArgs{"acme", 3}, Options{Reason: "monday ramp", DryRun: true, Yes: true, Key: "k", Incident: "inc", Output: "json"}, ""},
		{"org list -o=name --stale", "org list", &struct{}{}, Options{Output: "name", Stale: true}, ""},
		{"all show a -5 --name green --number -7 --small -128 --u 65535 --on --for 1h30m --at 2023-11-14T22:13:20Z --size \u22122 --deep d" +
			` --object '{"a":1}' --list 3 --list 4 --colour red --colour green --colour red`, "all show", &full, Options{}, ""},
		{"all show --on=false", "all show", &everything{For: fleet.Hour}, Options{}, ""},

		{"", "", nil, Options{}, "invalid: no command is given / footplate help lists them"},
		{"org", "", nil, Options{}, "invalid: org needs a verb / one of set, spoil, list, dump, dump noted"},
		{"orgs set", "", nil, Options{}, `invalid: there is no command "orgs" / did you mean "org"?`},
		{"zebra", "", nil, Options{}, `invalid: there is no command "zebra" / footplate help lists them`},
		{"org sett", "", nil, Options{}, `invalid: org has no verb "sett" / did you mean "org set"?`},
		{"org fly", "", nil, Options{}, `invalid: org has no verb "fly" / one of set, spoil, list, dump, dump noted`},
		{"org tidy", "", nil, Options{}, `invalid: org has no verb "tidy" / one of set, spoil, list, dump, dump noted`},
		{"org set", "", nil, Options{}, "invalid: org set needs ORG / footplate org set ORG [--slots NUMBER]"},
		{"org set a b", "", nil, Options{}, `invalid: org set does not take "b" / footplate org set ORG [--slots NUMBER]`},
		{"org set a --slot 3", "", nil, Options{}, "invalid: org set has no flag --slot / did you mean --slots?"},
		{"org set a --zebra 3", "", nil, Options{}, "invalid: org set has no flag --zebra / footplate help org set lists them"},
		{"org set a -x", "", nil, Options{}, "invalid: org set has no flag --x / footplate help org set lists them"},
		{"org set a --org b", "", nil, Options{}, "invalid: org set has no flag --org / footplate help org set lists them"},
		{"org set a \u2014", "", nil, Options{}, "invalid: org set has no flag -- / footplate help org set lists them"},
		{"org set a --slots", "", nil, Options{}, "invalid: --slots needs a value"},
		{"org set a --slots x", "", nil, Options{}, `invalid: --slots is "x"; it must be a whole number`},
		{"org set a --slots 1 --slots 2", "", nil, Options{}, "invalid: --slots is given 2 times"},
		{"org set a --slots 101", "", nil, Options{}, "invalid: --slots is 101"},
		{"org set a --yes=perhaps", "", nil, Options{}, `invalid: --yes is "perhaps"; it must be true or false`},
		{"all show --small 128", "", nil, Options{}, `invalid: --small is "128"; it must be a whole number`},
		{"all show --u -1", "", nil, Options{}, `invalid: --u is "-1"; it must be a whole number, not negative`},
		{"all show --on=perhaps", "", nil, Options{}, `invalid: --on is "perhaps"; it must be true or false`},
		{"all show --for 5", "", nil, Options{}, `invalid: --for: duration "5" is not understood / for example 30s, 5m, 1h30m or 2d`},
		{"all show --at noon", "", nil, Options{}, `invalid: --at: time "noon" is not RFC 3339 / for example 2026-11-21T03:00:00Z`},
		{"all show --size big", "", nil, Options{}, `invalid: --size: "big" is not a size / for example 6, +2 or -2`},
		{"all show --name blue", "", nil, Options{}, `invalid: --name cannot be "blue" / one of red, green`},
		{"all show --colour red --colour blue", "", nil, Options{}, `invalid: --colour cannot be "blue" / one of red, green`},
		{"all show --object 5", "", nil, Options{}, "invalid: --object must be JSON: a JSON object is wanted, not number"},
		{"all show --inner []", "", nil, Options{}, "invalid: all show has no flag --inner / footplate help all show lists them"},
		{"all show --skipped x", "", nil, Options{}, "invalid: all show has no flag --skipped / footplate help all show lists them"},
	} {
		call, err := registry().Parse(row.line)
		if words(err) != row.err {
			t.Errorf("%s\n  says  %s\n  wants %s", row.line, words(err), row.err)
			continue
		}
		if err != nil {
			continue
		}
		if call.Op.Name != row.op || call.Options != row.opts {
			t.Errorf("%s is %s with %+v", row.line, call.Op.Name, call.Options)
		}
		if diff := cmp.Diff(row.args, call.Args, cmp.AllowUnexported(everything{}, Size{})); diff != "" {
			t.Errorf("%s: -want +got\n%s", row.line, diff)
		}
	}
}

// TestBindNamed: what a URL gives by name.
func TestBindNamed(t *testing.T) {
	for _, row := range []struct {
		named map[string][]string
		want  orgArgs
		err   string
	}{
		{map[string][]string{"org": {"acme"}, "slots": {"9"}}, orgArgs{"acme", 9}, ""},
		{map[string][]string{"slots": {"9"}}, orgArgs{}, "invalid: org set needs ORG / footplate org set ORG [--slots NUMBER]"},
		{map[string][]string{"org": {"acme", "beta"}}, orgArgs{}, "invalid: ORG is given 2 times"},
		{map[string][]string{"org": {}}, orgArgs{}, "invalid: ORG is given 0 times"},
		{map[string][]string{"org": {"acme"}, "zebra": {"1"}, "aardvark": {"1"}}, orgArgs{}, "invalid: org set has no flag --aardvark / footplate help org set lists them"},
	} {
		got, err := orgSet.Bind(nil, row.named)
		if words(err) != row.err {
			t.Errorf("%v says %s", row.named, words(err))
		} else if err == nil && *got.(*orgArgs) != row.want {
			t.Errorf("%v gives %+v", row.named, got)
		}
	}
	if _, err := allShow.Bind(nil, map[string][]string{"inner": {`[{"a":1}]`}, "names": {"a", "b"}, "number": {"4"}}); err != nil {
		t.Error(err)
	}
	if got, err := orgSet.BindLoose(nil, nil); err != nil || got.(*orgArgs).Slots != 3 {
		t.Errorf("loosely bound: %v, %v", got, err)
	}
}

func TestDecode(t *testing.T) {
	for _, row := range []struct {
		json string
		want orgArgs
		err  string
	}{
		{`{"org":"acme","slots":9}`, orgArgs{"acme", 9}, ""},
		{` {"org":"acme"} ` + "\n", orgArgs{"acme", 3}, ""},
		{`{"org":"acme","slots":0}`, orgArgs{"acme", 0}, ""},
		{``, orgArgs{}, "invalid: org set needs ORG / footplate org set ORG [--slots NUMBER]"},
		{`null`, orgArgs{}, "invalid: org set needs ORG / footplate org set ORG [--slots NUMBER]"},
		{`{"org":"acme","slot":9}`, orgArgs{}, `invalid: arguments of org set: unknown field "slot" / footplate help org set lists them`},
		{`{"org":5}`, orgArgs{}, "invalid: arguments of org set: org cannot be number / footplate help org set lists them"},
		{`["acme"]`, orgArgs{}, "invalid: arguments of org set: a JSON object is wanted, not array / footplate help org set lists them"},
		{`{"org":"acme"`, orgArgs{}, "invalid: arguments of org set: the JSON is cut off / footplate help org set lists them"},
		{`{"org":"acme"} {}`, orgArgs{}, "invalid: arguments of org set: there is more after the object"},
		{`{"org":"acme"}}`, orgArgs{}, "invalid: arguments of org set: there is more after the object"},
		{`{"org":"acme"}]`, orgArgs{}, "invalid: arguments of org set: there is more after the object"},
		{`{"org":"acme","slots":101}`, orgArgs{}, "invalid: --slots is 101"},
	} {
		got, err := orgSet.Decode([]byte(row.json))
		if words(err) != row.err {
			t.Errorf("%s says %s", row.json, words(err))
		} else if err == nil && *got.(*orgArgs) != row.want {
			t.Errorf("%s gives %+v", row.json, got)
		}
	}
	for _, row := range []struct{ json, err string }{
		{`{"name":"blue"}`, `invalid: --name cannot be "blue" / one of red, green`},
		{`{"name":""}`, ""},
		{`{"colours":["red","blue"]}`, `invalid: --colour cannot be "blue" / one of red, green`},
		{`{"size":"big"}`, `invalid: "big" is not a size / for example 6, +2 or -2`},
		{`{"for":"soon"}`, `invalid: duration "soon" is not understood / for example 30s, 5m, 1h30m or 2d`},
		{`{"at":5}`, "invalid: arguments of all show: time must be a string / footplate help all show lists them"},
	} {
		if _, err := allShow.Decode([]byte(row.json)); words(err) != row.err {
			t.Errorf("%s says %s", row.json, words(err))
		}
	}
}

// TestEncodeDecode: what is logged is read back as it was.
func TestEncodeDecode(t *testing.T) {
	call, err := registry().Parse("all show a b --for 2d --size +0 --at 2023-11-14T22:13:20.5Z --object '{\"x\":1}' --colour red")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := allShow.Encode(call.Args)
	if err != nil {
		t.Fatal(err)
	}
	again, err := allShow.Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(call.Args, again, cmp.AllowUnexported(everything{}, Size{})); diff != "" {
		t.Errorf("-before +after\n%s", diff)
	}
}

func TestParams(t *testing.T) {
	var got []string
	for _, p := range allShow.Params {
		s := p.Name + " " + p.Placeholder() + " " + p.Type
		if p.Many {
			s += " many"
		}
		if p.Secret {
			s += " secret"
		}
		got = append(got, s)
	}
	if diff := cmp.Diff([]string{
		"deep --deep string", "name --name string", "names NAME... string many", "n --number number", "small --small number", "u --u number",
		"on --on bool", "for --for duration", "at --at time", "size --size size", "object --object object", "list --list number many",
		"colours --colour string many", "secret --secret string secret", "secrets --more string many secret", "hidden --hidden object secret", "inner inner object",
	}, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if got, want := orgSet.Usage(), "org set ORG [--slots NUMBER]"; got != want {
		t.Errorf("usage is %s", got)
	}
	if orgDumpNoted.Noun() != "org" || orgDumpNoted.Verb() != "dump noted" || orgDumpNoted.Path() != "org.dump.noted" {
		t.Error("a name of three words is cut wrongly")
	}
	if !orgList.Many || orgList.Logged() || orgDump.Logged() || !orgDumpNoted.Logged() || !orgTidy.Hidden() || orgTidy.Version() != 2 || orgSet.Version() != 1 {
		t.Error("an operation says something wrong of itself")
	}
}

func TestSize(t *testing.T) {
	for _, row := range []struct {
		text string
		of4  int
		back string
	}{
		{"6", 6, "6"}, {"0", 0, "0"}, {"+2", 6, "+2"}, {"-2", 2, "-2"}, {"\u22122", 2, "-2"}, {"\u20132", 2, "-2"}, {"+0", 4, "+0"}, {"-0", 4, "+0"}, {"007", 7, "7"},
	} {
		var s Size
		if err := s.UnmarshalText([]byte(row.text)); err != nil || s.Of(4) != row.of4 || s.String() != row.back {
			t.Errorf("%q of 4 is %d, written %s, %v", row.text, s.Of(4), s, err)
		}
		b, err := json.Marshal(s)
		var again Size
		if err != nil || json.Unmarshal(b, &again) != nil || again != s {
			t.Errorf("%q comes back from JSON as %+v", row.text, again)
		}
	}
	for _, text := range []string{"", "+", "-", "two", "1.5", "+-2", "--2", "9999999999", " 2"} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); fleet.CodeOf(err) != fleet.CodeInvalid {
			t.Errorf("%q is taken as %s", text, s)
		}
	}
}

func TestNearest(t *testing.T) {
	names := []string{"pool", "host", "build", "queue", "cluster", "automation"}
	for s, want := range map[string]string{
		"pol": "pool", "pools": "pool", "hots": "host", "biuld": "build", "automaton": "automation", "clutser": "cluster",
		"": "", "x": "", "zebra": "", "POOL": "",
	} {
		if got := fleet.Nearest(s, names); got != want {
			t.Errorf("nearest to %q is %q, not %q", s, got, want)
		}
	}
}

// checkInvalid fails when err is anything but nil or what a person may see as
// bad usage.
func checkInvalid(t *testing.T, err error) {
	t.Helper()
	var e *fleet.Error
	if err != nil && (!errors.As(err, &e) || e.Code != fleet.CodeInvalid || e.Msg == "") {
		t.Fatalf("the error is %#v", err)
	}
}

func FuzzSplit(f *testing.F) {
	for _, s := range []string{`a "b c" 'd'`, `\`, "\u201ca\u201d", "a\xff", `''`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		words, err := Split(line)
		checkInvalid(t, err)
		if err != nil {
			return
		}
		// Each word, quoted, is read back as it is.
		quoted := make([]string, len(words))
		for i, w := range words {
			quoted[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		again, err := Split(strings.Join(quoted, " "))
		if err == nil && !slices.Equal(words, again) {
			t.Fatalf("%q is read back as %q", words, again)
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"org set acme --slots 4 --reason 'x y'", "org dump noted", "all show a b --on --for 1h --at 2023-11-14T22:13:20Z --size -2",
		"all show --object {} --list 3 --colour red -o json -- -x", "org", "\u2014", "org set a --slots",
	} {
		f.Add(s)
	}
	reg := registry()
	f.Fuzz(func(t *testing.T, line string) {
		call, err := reg.Parse(line)
		checkInvalid(t, err)
		if err != nil {
			return
		}
		raw, err := call.Op.Encode(call.Args)
		checkInvalid(t, err)
		if err != nil {
			return
		}
		again, err := call.Op.Decode(raw)
		if err != nil {
			t.Fatalf("%s was parsed, and its arguments are refused: %v", raw, err)
		}
		back, err := call.Op.Encode(again)
		if err != nil || string(back) != string(raw) {
			t.Fatalf("%s comes back as %s, %v", raw, back, err)
		}
	})
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{`{}`, `{"org":"acme","slots":4}`, `{"name":"red","for":"1h","at":"2023-11-14T22:13:20Z","size":"+2","object":{"a":1},"list":[1]}`, `[]`, `null`, `{"a":`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, o := range []*Op{orgSet, allShow, orgList} {
			args, err := o.Decode(raw)
			checkInvalid(t, err)
			if err != nil {
				continue
			}
			once, err := o.Encode(args)
			if err != nil {
				checkInvalid(t, err)
				continue
			}
			again, err := o.Decode(once)
			if err != nil {
				t.Fatalf("%s was read, and as %s is refused: %v", raw, once, err)
			}
			if twice, err := o.Encode(again); err != nil || string(once) != string(twice) {
				t.Fatalf("%s comes back as %s, %v", once, twice, err)
			}
		}
	})
}

// An option that means nothing to an operation is in no help of it.
func TestTakes(t *testing.T) {
	list := Query(Spec{Name: "thing list"}, func(context.Context, Env, struct{}) ([]struct{}, error) { return nil, nil })
	read := Stream(Spec{Name: "thing read"}, nil, func(context.Context, Env, struct{}, io.Writer) error { return nil })
	noted := Stream(Spec{Name: "thing save"}, func(*state.Tx, Meta, struct{}) (Result, error) { return Result{}, nil },
		func(context.Context, Env, struct{}, io.Writer) error { return nil })
	for o, want := range map[*Op]string{
		orgSet: "reason dry-run yes idempotency-key incident output",
		list:   "output stale",
		read:   "stale",
		noted:  "reason idempotency-key incident",
	} {
		var got []string
		for _, opt := range OptionList() {
			if o.Takes(opt.Flag) {
				got = append(got, opt.Flag)
			}
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s takes %q, want %q", o.Name, s, want)
		}
	}
}
