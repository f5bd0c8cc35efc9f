package page

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"

	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/fleet"
)

// maxFollowed is how many tasks of a build are followed at once.
const maxFollowed = 8

// listView is a list with a form that filters it.
type listView struct {
	Title   string
	Path    string
	Filters []filter
	Grid    grid
	Age     string
	Err     *fleet.Error
}

// filter is one parameter of the operation behind a list.
type filter struct {
	op.Param
	Label, Value, Kind string
}

// list asks the query behind a list, filtered by what stands in the URL.
func (v *visit) list(ctx context.Context, o *op.Op, r *http.Request) (listView, error) {
	out := listView{Path: r.URL.Path}
	values := r.URL.Query()
	given := make(map[string][]string)
	for _, param := range o.Params {
		if param.Flag == "" {
			continue
		}
		f := filter{Param: param, Label: param.Flag, Value: visible(values.Get(param.Flag)), Kind: "text"}
		if param.Type == "number" {
			f.Kind = "number"
		}
		if f.Value != "" {
			given[param.Flag] = []string{f.Value}
		} else {
			f.Value = param.Default
		}
		out.Filters = append(out.Filters, f)
	}
	args, err := o.Bind(nil, given)
	if err != nil {
		return out, err
	}
	raw, stale, err := v.api.Query(ctx, o, args, true)
	if err != nil {
		return out, err
	}
	if age, err := fleet.ParseDuration(string(stale)); err == nil && age >= oldAfter {
		out.Age = short(age)
	}
	s, err := shapeOf(o, raw, false)
	if err == nil && len(s.Grids) > 0 {
		out.Grid = s.Grids[0]
	}
	return out, err
}

// builds lists builds: GET /builds.
func (p *Page) builds(w http.ResponseWriter, r *http.Request, v *visit) error {
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	l, err := v.list(ctx, catalog.BuildList, r)
	if v.expired.Load() {
		return err
	}
	l.Title, l.Err = "builds", fleet.AsError(err)
	p.views.page(w, statusOf(err), "builds", v, "builds", l)
	return nil
}

func statusOf(err error) int {
	if err == nil {
		return http.StatusOK
	}
	return fleet.CodeOf(err).Meaning().HTTP
}

// buildView is a build's page.
type buildView struct {
	catalog.BuildDetail
	Age      string
	Over     bool
	Tasks    []taskView
	Followed []string // names of the tasks whose logs are shown
	Chosen   string   // the task that the visitor chose
	Attempts []catalog.AttemptRow
}

// taskView is a task as the build's page lists it.
type taskView struct {
	Name  string
	State string
	Tries []catalog.AttemptRow
	Shown bool
}

func (v *visit) build(ctx context.Context, id fleet.BuildID, chosen string) (buildView, error) {
	d, age, err := query[catalog.BuildDetail](ctx, v, catalog.BuildShow, &catalog.BuildArgs{Build: id})
	if err != nil {
		return buildView{}, err
	}
	out := buildView{BuildDetail: d, Chosen: chosen, Over: d.Finished != 0}
	if age >= oldAfter {
		out.Age = short(age)
	}
	for _, a := range d.List {
		i := slices.IndexFunc(out.Tasks, func(t taskView) bool { return t.Name == a.Task })
		if i < 0 {
			i = len(out.Tasks)
			out.Tasks = append(out.Tasks, taskView{Name: a.Task})
		}
		t := &out.Tasks[i]
		t.Tries = append(t.Tries, a)
		if t.State = string(a.Outcome); t.State == "" {
			t.State = a.Phase
		}
	}
	switch {
	case chosen != "":
		if !slices.ContainsFunc(out.Tasks, func(t taskView) bool { return t.Name == chosen }) {
			return out, fleet.NotFoundf("build %d has no task %q", id, chosen)
		}
		out.Followed = []string{chosen}
	case len(out.Tasks) <= maxFollowed:
		for _, t := range out.Tasks {
			out.Followed = append(out.Followed, t.Name)
		}
	default:
		out.Followed = []string{telling(out.Tasks)}
	}
	for i := range out.Tasks {
		out.Tasks[i].Shown = slices.Contains(out.Followed, out.Tasks[i].Name)
	}
	for _, a := range d.List {
		if a.Attempt != 0 && slices.Contains(out.Followed, a.Task) {
			out.Attempts = append(out.Attempts, a)
		}
	}
	slices.SortFunc(out.Attempts, func(a, b catalog.AttemptRow) int { return cmp.Compare(a.Attempt, b.Attempt) })
	return out, nil
}

// telling returns the task that people look for first: one that failed, else
// one that runs.
func telling(tasks []taskView) string {
	for _, bad := range []bool{true, false} {
		for _, t := range tasks {
			last := t.Tries[len(t.Tries)-1]
			if bad && last.Outcome != "" && last.Outcome != fleet.Passed || !bad && last.Attempt != 0 && last.Ended == 0 {
				return t.Name
			}
		}
	}
	return tasks[0].Name
}

func buildID(r *http.Request) (fleet.BuildID, error) {
	n, err := strconv.ParseUint(r.PathValue("build"), 10, 64)
	if err != nil {
		return 0, fleet.NotFoundf("%q is no number of a build", visible(r.PathValue("build")))
	}
	return fleet.BuildID(n), nil
}

// build shows a build: GET /builds/17.
func (p *Page) build(w http.ResponseWriter, r *http.Request, v *visit) error {
	id, err := buildID(r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	b, err := v.build(ctx, id, r.URL.Query().Get("task"))
	if err != nil {
		return err
	}
	p.views.page(w, http.StatusOK, "build", v, "build "+id.String(), b)
	return nil
}

// staleKey marks a call that is content with what the node has.
type staleKey struct{}

// logChunks reads the log of a build's task from a place on, and calls f with
// each chunk, until the log ends or f fails.
func (v *visit) logChunks(ctx context.Context, args catalog.BuildLogsArgs, f func(op.LogChunk) error) error {
	r, err := v.api.Stream(context.WithValue(ctx, staleKey{}, true), catalog.BuildLogs, &args)
	if err != nil {
		return err
	}
	defer r.Close()
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadBytes('\n')
		if err == io.EOF && len(line) == 0 {
			return r.Close()
		}
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		var c op.LogChunk
		if err := json.Unmarshal(line, &c); err != nil {
			return fleet.Internalf("a chunk of the log cannot be read: %s", err)
		}
		if err := f(c); err != nil {
			return err
		}
	}
}

// plainLog writes the log of a build, or of one of its tasks, as it is: GET
// /builds/17/log.txt.
func (p *Page) plainLog(w http.ResponseWriter, r *http.Request, v *visit) error {
	id, err := buildID(r)
	if err != nil {
		return err
	}
	leave, err := p.enter()
	if err != nil {
		return err
	}
	defer leave()
	args := catalog.BuildLogsArgs{Build: id, Task: r.URL.Query().Get("task")}
	out := newLongAnswer(w)
	begun := false
	begin := func() {
		if !begun {
			begun = true
			// To be kept as a file: a browser never renders it.
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.Header().Set("Content-Disposition", fmt.Sprintf(`attachment; filename="build-%d.log"`, id))
		}
	}
	err = v.logChunks(r.Context(), args, func(c op.LogChunk) error {
		begin()
		return out.write(c.Data)
	})
	if err != nil && begun {
		panic(http.ErrAbortHandler) // cut off, and seen to be
	}
	if err == nil {
		begin()
	}
	return err
}
