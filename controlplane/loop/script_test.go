package loop

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/provider"

	"github.com/cockroachdb/datadriven"
)

// fleetOf is a script's fleet: a state, and the machines that providers list.
type fleetOf struct {
	t        *testing.T
	reg      *op.Registry
	st       *state.State
	now      fleet.Time
	listings []Listing
}

// TestScripts plays testdata/*.txt. The words are an operator's:
//
//	run                         alice: pool create linux --size 3
//	                            watch: host suspect {"hosts":["linux-1"],"why":"silent"}
//	                            time +10s
//	up                          every machine that was launched is made, and its agent joins
//	list provider=local         what a provider lists: launch, host and state a line
//	provision | retain | ...    steps a loop until it has nothing to say, and
//	                            prints what it decided and what came of it
//	once loop=retain            steps it once, and counts what it decided
//	hosts                       how each host is
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		f := &fleetOf{reg: catalog.All(), st: state.New(), now: 1_772_438_400_000}
		f.st.Begin(1, f.now)
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			f.t = t
			switch d.Cmd {
			case "run":
				var out []string
				for line := range strings.Lines(d.Input) {
					if said := f.run(strings.TrimSpace(line)); said != "" {
						out = append(out, said)
					}
				}
				return strings.Join(out, "\n")
			case "list":
				var from string
				d.ScanArgs(t, "provider", &from)
				f.list(from, d.Input)
				return "noted"
			case "up":
				return f.up()
			case "once":
				var loop string
				d.ScanArgs(t, "loop", &loop)
				commands, _ := f.decide(loop)
				for _, c := range commands {
					f.apply(c)
				}
				return fmt.Sprintf("%d commands", len(commands))
			case "provision", "promote", "dispatch", "retain":
				return f.step(d.Cmd)
			case "hosts":
				var out []string
				for id, h := range f.st.Hosts.All() {
					out = append(out, fmt.Sprintf("%s %s", id, h.Condition()))
				}
				return strings.Join(out, "\n")
			}
			t.Fatalf("there is no directive %q", d.Cmd)
			return ""
		})
	})
}

// run plays one line; what it says is empty when all went as it should.
func (f *fleetOf) run(line string) string {
	f.t.Helper()
	if d, ok := strings.CutPrefix(line, "time +"); ok {
		by, err := fleet.ParseDuration(d)
		if err != nil {
			f.t.Fatal(err)
		}
		f.now = f.now.Add(by)
		return ""
	}
	who, what, ok := strings.Cut(line, ": ")
	if !ok {
		f.t.Fatalf("%q names nobody", line)
	}
	c := state.Command{By: fleet.Principal(who), Role: fleet.Admin, Via: "cli/test"}
	who, refused := strings.CutSuffix(who, " refused")
	name, raw, internal := strings.Cut(what, " {")
	if o, known := f.reg.Get(name); internal && known {
		c.Op, c.Ver, c.Role, c.Args = o.Name, o.Version(), fleet.System, json.RawMessage("{"+raw)
	} else {
		call, err := f.reg.Parse(what)
		if err != nil {
			f.t.Fatal(err)
		}
		c.Op, c.Ver, c.Reason = call.Op.Name, call.Op.Version(), call.Options.Reason
		if c.Args, err = call.Op.Encode(call.Args); err != nil {
			f.t.Fatal(err)
		}
	}
	if refused {
		c.By, c.Refusal = fleet.Principal(who), fleet.Deniedf("%s may not", who)
	}
	if out := f.apply(c); out.Err != nil && !refused {
		return fmt.Sprintf("%s: %s", line, out.Err.Msg)
	}
	return ""
}

func (f *fleetOf) apply(c state.Command) state.Outcome {
	f.t.Helper()
	a, err := f.reg.Apply(f.st, f.st.Index+1, state.Batch{At: f.now, Commands: []state.Command{c}}, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	return a.Outcomes[0]
}

// up makes what was launched, and lets its agents join.
func (f *fleetOf) up() string {
	var out []string
	for _, h := range f.st.Publish().Hosts.All() {
		if h.State != fleet.HostBooting {
			continue
		}
		f.run(fmt.Sprintf(`provision: launch report {"launch":%d,"done":true}`, h.Launch))
		f.run(fmt.Sprintf(`agent: agent join {"host":%q,"pool":%q,"launch":%d,"boot":"b","incarnation":1}`, h.ID, h.Pool, h.Launch))
		out = append(out, string(h.ID))
	}
	return strings.Join(out, " ")
}

// list takes in what a provider lists from now on.
func (f *fleetOf) list(from, machines string) {
	l := Listing{Provider: from}
	for line := range strings.Lines(machines) {
		w := strings.Fields(line)
		n, err := strconv.ParseUint(w[0], 10, 64)
		if err != nil {
			f.t.Fatal(err)
		}
		l.Instances = append(l.Instances, provider.Instance{Launch: fleet.LaunchID(n), Host: fleet.HostID(w[1]), State: provider.State(w[2])})
	}
	f.listings = slices.DeleteFunc(f.listings, func(o Listing) bool { return o.Provider == from })
	f.listings = append(f.listings, l)
}

func (f *fleetOf) decide(loop string) ([]state.Command, Effects) {
	v := f.st.Publish()
	switch loop {
	case "provision":
		return Provision(f.now, v, f.listings)
	case "promote":
		return Promote(f.now, v), Effects{}
	case "dispatch":
		return Dispatch(f.now, v), Effects{}
	case "retain":
		return Retain(f.now, v), Effects{}
	}
	f.t.Fatalf("there is no loop %q", loop)
	return nil, Effects{}
}

// step steps a loop until it decides nothing more, and applies what it decides.
func (f *fleetOf) step(loop string) string {
	var out []string
	for range 20 {
		commands, fx := f.decide(loop)
		for _, e := range []struct {
			what string
			ids  []fleet.LaunchID
		}{{"launch", fx.Launch}, {"terminate", fx.Terminate}, {"forget", fx.Forget}} {
			if len(e.ids) > 0 && len(commands) == 0 {
				out = append(out, fmt.Sprintf("the provider is asked to %s %v", e.what, e.ids))
			}
		}
		if len(commands) == 0 {
			if len(out) == 0 {
				return "nothing"
			}
			return strings.Join(out, "\n")
		}
		for _, c := range commands {
			got := f.apply(c)
			said := got.Text
			if got.Err != nil {
				said = "error: " + got.Err.Msg
			}
			out = append(out, fmt.Sprintf("%s: %s", c.Op, said))
		}
	}
	f.t.Fatalf("the loop does not come to rest:\n%s", strings.Join(out, "\n"))
	return ""
}
