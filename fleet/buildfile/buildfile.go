// Package buildfile reads build files: YAML that says what a build does.
//
//	org: acme
//	pool: linux
//	source: {repo: /srv/git/app, ref: main}
//	env: {GOFLAGS: -count=1}
//	timeouts: {checkout: 5m, steps: 20m}
//	tasks:
//	  - name: test
//	    parallel: 2
//	    steps:
//	      - go vet ./...
//	      - {name: tests, run: go test ./..., timeout: 10m}
//
// A file with one task may give its steps at the top. The reader is strict:
// what it does not know is an error, with file, line and column. Anchors,
// aliases and tags are refused, so a small file stays small.
package buildfile

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"footplate/fleet"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// MaxBytes bounds a build file.
const MaxBytes = 64 << 10

// Submission is what a build file says. Org and Pool are empty when it does not
// name them.
type Submission struct {
	Org      fleet.OrgName
	Pool     fleet.PoolName
	Priority int
	Spec     fleet.BuildSpec
}

// Parse reads a build file; name stands in errors, which have CodeInvalid.
func Parse(name string, data []byte) (*Submission, error) {
	if len(data) > MaxBytes {
		return nil, fleet.Invalidf("%s is %d bytes long; at most %d are allowed", name, len(data), MaxBytes).
			WithHint("move long scripts into the repository")
	}
	if !utf8.Valid(data) {
		return nil, fleet.Invalidf("%s: line %d is not valid UTF-8", name, badLine(data))
	}
	// A byte order mark and carriage returns are what some editors leave; in a
	// step they would reach the shell.
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	data = bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n"))
	r := &reader{name: name}
	if err := r.bounded(data); err != nil {
		return nil, err
	}
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		return nil, r.syntax(err)
	}
	var body ast.Node
	for _, d := range file.Docs {
		switch {
		case d.Body == nil:
		case d.Body.Type() == ast.DirectiveType:
			return nil, r.errorf(d.Body, "a build file has no directives").WithHint("leave the line out")
		case body != nil:
			return nil, r.errorf(d.Body, "a build file is one document")
		default:
			body = d.Body
		}
	}
	if body == nil {
		return nil, fleet.Invalidf("%s is empty", name).WithHint("a build needs an org, a pool and steps")
	}
	var s Submission
	if err := r.submission(body, &s); err != nil {
		return nil, err
	}
	if err := s.Spec.Validate(); err != nil {
		e := fleet.AsError(err)
		return nil, fleet.Invalidf("%s: %s", name, e.Msg).WithHint("%s", e.Hint)
	}
	return &s, nil
}

func badLine(data []byte) int {
	line := 1
	for len(data) > 0 {
		c, n := utf8.DecodeRune(data)
		if c == utf8.RuneError && n == 1 {
			break
		}
		if c == '\n' {
			line++
		}
		data = data[n:]
	}
	return line
}

// reader turns nodes into values, and says where what is wrong stands.
type reader struct{ name string }

// maxDepth bounds how deep a file nests, before it reaches the parser.
const maxDepth = 32

// bounded refuses what would make the parser recurse without end: brackets, and
// the lists in lists that "- - - -" makes of one line. (Indentation bounds
// itself: every level costs a longer line.)
func (r *reader) bounded(data []byte) error {
	depth, line := 0, 1
	dashes, leading := 0, true // of this line
	for _, c := range data {
		switch {
		case c == '\n':
			dashes, leading = 0, true
		case leading && (c == '-' || c == '?'):
			dashes++
		case c != ' ' && c != '\t':
			leading = false
			dashes = 0
		}
		if dashes > 10*maxDepth {
			return fleet.Invalidf("%s: line %d nests too deep", r.name, line)
		}
		switch c {
		case '[', '{':
			depth++
		case ']', '}':
			depth = max(0, depth-1)
		case '\n':
			line++
		}
		if depth > 10*maxDepth {
			return fleet.Invalidf("%s: line %d nests too deep", r.name, line)
		}
	}
	return nil
}

func (r *reader) syntax(err error) error {
	var at yaml.Error
	if errors.As(err, &at) && at.GetToken() != nil && at.GetToken().Position != nil {
		p := at.GetToken().Position
		return fleet.Invalidf("%s:%d:%d: %s", r.name, p.Line, p.Column, at.GetMessage())
	}
	return fleet.Invalidf("%s: %s", r.name, err)
}

func (r *reader) errorf(n ast.Node, format string, args ...any) *fleet.Error {
	where := r.name
	// The token of a block mapping is its first colon; people look at the key.
	if m, ok := n.(*ast.MappingNode); ok && !m.IsFlowStyle && len(m.Values) > 0 {
		n = m.Values[0].Key
	}
	if t := n.GetToken(); t != nil && t.Position != nil {
		where = fmt.Sprintf("%s:%d:%d", r.name, t.Position.Line, t.Position.Column)
	}
	return fleet.Invalidf("%s: %s", where, fmt.Sprintf(format, args...))
}

// check validates one part of a build by itself, so that what is wrong with it is
// said where it stands. What only the whole can say is left for the end.
func (r *reader) check(n ast.Node, part fleet.BuildSpec) error {
	if part.Tasks == nil {
		part.Tasks = []fleet.TaskSpec{{Name: "main", Steps: []fleet.Step{{Run: "true"}}}}
	}
	if err := part.Validate(); err != nil {
		e := fleet.AsError(err)
		return r.errorf(n, "%s", e.Msg).WithHint("%s", e.Hint)
	}
	return nil
}

// field reads one key of a mapping.
type field struct {
	name string
	read func(v ast.Node) error
}

// mapping reads a mapping whose keys are those of fields.
func (r *reader) mapping(n ast.Node, what string, fields ...field) error {
	return r.pairs(n, what, func(key string, k, v ast.Node) error {
		var known []string
		for _, f := range fields {
			if f.name == key {
				return f.read(v)
			}
			known = append(known, f.name)
		}
		e := r.errorf(k, "unknown field %q", key)
		if near := fleet.Nearest(key, known); near != "" {
			return e.WithHint("did you mean %q?", near)
		}
		return e.WithHint("one of %s", strings.Join(known, ", "))
	})
}

// pairs calls f for every pair of a mapping, in order; a key may stand once.
func (r *reader) pairs(n ast.Node, what string, f func(key string, k, v ast.Node) error) error {
	m, ok := n.(*ast.MappingNode)
	if !ok {
		return r.errorf(n, "%s must be a mapping, not %s", what, kind(n))
	}
	seen := make(map[string]bool, len(m.Values))
	for _, pair := range m.Values {
		key, err := r.text(pair.Key, "a key")
		if err != nil {
			return err
		}
		if seen[key] {
			return r.errorf(pair.Key, "%q stands twice", key)
		}
		seen[key] = true
		if err := f(key, pair.Key, pair.Value); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) list(n ast.Node, what string, f func(v ast.Node) error) error {
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		return r.errorf(n, "%s must be a list, not %s", what, kind(n))
	}
	for _, v := range s.Values {
		if err := f(v); err != nil {
			return err
		}
	}
	return nil
}

func kind(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	case *ast.NullNode:
		return "nothing"
	case *ast.BoolNode:
		return "true or false"
	case *ast.IntegerNode, *ast.FloatNode:
		return "a number"
	case *ast.AnchorNode, *ast.AliasNode:
		return "an anchor or alias, which are not allowed here"
	case *ast.TagNode:
		return "a tag, which is not allowed here"
	case *ast.MergeKeyNode:
		return "a merge key, which is not allowed here"
	}
	return "text"
}

// text reads text. A number is taken as it is written, since in a build file
// 1.20 is a version.
func (r *reader) text(n ast.Node, what string) (string, error) {
	var s string
	switch v := n.(type) {
	case *ast.StringNode:
		s = v.Value
	case *ast.LiteralNode:
		s = v.Value.Value
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		s = n.GetToken().Value
	case *ast.MappingKeyNode:
		return r.text(v.Value, what)
	default:
		return "", r.errorf(n, "%s must be text, not %s", what, kind(n))
	}
	if strings.IndexByte(s, 0) >= 0 {
		return "", r.errorf(n, "%s has a zero byte", what)
	}
	return s, nil
}

func (r *reader) into(what string, s *string) field {
	return field{what, func(v ast.Node) (err error) { *s, err = r.text(v, what); return err }}
}

// called reads a name.
func (r *reader) called(what string, s *string) field {
	return field{what, func(v ast.Node) (err error) {
		if *s, err = r.text(v, what); err != nil {
			return err
		}
		if err := fleet.CheckName(what, *s); err != nil {
			e := fleet.AsError(err)
			return r.errorf(v, "%s", e.Msg).WithHint("%s", e.Hint)
		}
		return nil
	}}
}

func (r *reader) number(what string, to *int, least, most int) field {
	return field{what, func(v ast.Node) error {
		i, ok := v.(*ast.IntegerNode)
		if !ok {
			return r.errorf(v, "%s must be a whole number, not %s", what, kind(v))
		}
		n, err := strconv.Atoi(i.GetToken().Value)
		if err != nil || n < least || n > most {
			return r.errorf(v, "%s is %s; it must lie between %d and %d", what, i.GetToken().Value, least, most)
		}
		*to = n
		return nil
	}}
}

func (r *reader) duration(what string, to *fleet.Duration) field {
	return field{what, func(v ast.Node) error {
		s, err := r.text(v, what)
		if err != nil {
			return err
		}
		d, err := fleet.ParseDuration(s)
		if err != nil || d < 0 {
			return r.errorf(v, "%s: duration %q is not understood", what, s).WithHint("for example 30s, 5m or 1h30m")
		}
		*to = d
		return nil
	}}
}

func (r *reader) env(to *[]fleet.EnvVar) field {
	return field{"env", func(n ast.Node) error {
		return r.pairs(n, "env", func(key string, k, v ast.Node) error {
			value, err := r.text(v, "the value of "+key)
			if err != nil {
				return err
			}
			one := fleet.EnvVar{Name: key, Value: value}
			*to = append(*to, one)
			return r.check(k, fleet.BuildSpec{Env: []fleet.EnvVar{one}})
		})
	}}
}

func (r *reader) submission(n ast.Node, s *Submission) error {
	var org, pool, retry string
	var steps []fleet.Step
	var stepsAt, tasksAt ast.Node
	err := r.mapping(n, "a build file",
		r.called("org", &org),
		r.called("pool", &pool),
		r.number("priority", &s.Priority, -fleet.MaxPriority, fleet.MaxPriority),
		field{"source", func(v ast.Node) error {
			err := r.mapping(v, "source", r.into("repo", &s.Spec.Source.Repo), r.into("ref", &s.Spec.Source.Ref))
			if err != nil {
				return err
			}
			return r.check(v, fleet.BuildSpec{Source: s.Spec.Source})
		}},
		r.env(&s.Spec.Env),
		field{"timeouts", func(v ast.Node) error {
			t := &s.Spec.Timeouts
			err := r.mapping(v, "timeouts", r.duration("setup", &t.Setup), r.duration("checkout", &t.Checkout),
				r.duration("steps", &t.Steps), r.duration("upload", &t.Upload))
			if err != nil {
				return err
			}
			return r.check(v, fleet.BuildSpec{Timeouts: *t})
		}},
		field{"exclusive", func(v ast.Node) error {
			b, ok := v.(*ast.BoolNode)
			if !ok {
				return r.errorf(v, "exclusive must be true or false, not %s", kind(v))
			}
			s.Spec.Exclusive = b.Value
			return nil
		}},
		field{"retry", func(v ast.Node) (err error) {
			if retry, err = r.text(v, "retry"); err != nil {
				return err
			}
			return r.check(v, fleet.BuildSpec{Retry: fleet.RetryPolicy(retry)})
		}},
		field{"steps", func(v ast.Node) (err error) {
			stepsAt = v
			steps, err = r.steps(v)
			return err
		}},
		field{"tasks", func(v ast.Node) error {
			tasksAt = v
			return r.list(v, "tasks", func(v ast.Node) error { return r.task(v, &s.Spec) })
		}},
	)
	if err != nil {
		return err
	}
	s.Org, s.Pool, s.Spec.Retry = fleet.OrgName(org), fleet.PoolName(pool), fleet.RetryPolicy(retry)
	if stepsAt != nil {
		if tasksAt != nil {
			return r.errorf(stepsAt, "a build has steps or tasks, not both").WithHint("move the steps into a task")
		}
		s.Spec.Tasks = []fleet.TaskSpec{{Name: "main", Steps: steps}}
	}
	return nil
}

func (r *reader) task(n ast.Node, spec *fleet.BuildSpec) error {
	var t fleet.TaskSpec
	parallel := 1
	err := r.mapping(n, "a task",
		r.into("name", &t.Name), r.env(&t.Env),
		r.number("parallel", &parallel, 1, fleet.MaxTasks),
		field{"steps", func(v ast.Node) (err error) { t.Steps, err = r.steps(v); return err }},
	)
	if err != nil {
		return err
	}
	if t.Name == "" {
		return r.errorf(n, "a task has no name").WithHint("give it a name: it stands in logs and commands")
	}
	if len(spec.Tasks)+parallel > fleet.MaxTasks {
		return r.errorf(n, "a build has at most %d tasks", fleet.MaxTasks)
	}
	first := len(spec.Tasks)
	if parallel == 1 {
		spec.Tasks = append(spec.Tasks, t)
	} else {
		for i := range parallel {
			c := t
			c.Name = fmt.Sprintf("%s-%d", t.Name, i+1)
			spec.Tasks = append(spec.Tasks, c)
		}
	}
	if err := r.check(n, fleet.BuildSpec{Tasks: spec.Tasks[first:]}); err != nil {
		return err
	}
	for _, earlier := range spec.Tasks[:first] {
		for _, c := range spec.Tasks[first:] {
			if earlier.Name == c.Name {
				return r.errorf(n, "two tasks are named %q", c.Name)
			}
		}
	}
	return nil
}

func (r *reader) steps(n ast.Node) ([]fleet.Step, error) {
	var steps []fleet.Step
	err := r.list(n, "steps", func(v ast.Node) error {
		var s fleet.Step
		if _, ok := v.(*ast.MappingNode); ok {
			if err := r.mapping(v, "a step", r.into("name", &s.Name), r.into("run", &s.Run), r.duration("timeout", &s.Timeout)); err != nil {
				return err
			}
		} else {
			var err error
			if s.Run, err = r.text(v, "a step"); err != nil {
				return err
			}
		}
		if strings.TrimSpace(s.Run) == "" {
			return r.errorf(v, "a step has nothing to run")
		}
		steps = append(steps, s)
		return nil
	})
	return steps, err
}
