package page

import (
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"strings"
	"testing"

	"footplate/fleet"
)

// chunks reads the log's stream until text stands in a chunk, or its end.
func chunks(t *testing.T, s *sse, upto string) (got []chunkView, last event) {
	t.Helper()
	for {
		e := s.next("chunk", "end")
		if e.kind == "end" {
			return got, e
		}
		var c chunkView
		if err := json.Unmarshal([]byte(e.data), &c); err != nil {
			t.Fatal(err)
		}
		got = append(got, c)
		if upto != "" && strings.Contains(string(c.HTML), upto) {
			return got, e
		}
	}
}

// Who comes back to a log gets what comes after the last chunk, in its colour.
func TestLogGoesOnWhereItWas(t *testing.T) {
	w := newWorld(t)
	b := w.visitor(vera)
	w.logs.write("main", 1, 0, "\x1b[32mone\n")
	w.logs.write("main", 1, 1, "two\n\x1b[3")
	s := b.events("/builds/900/log")
	if e := s.next("attempt"); !strings.Contains(e.data, `id="attempt-1"`) {
		t.Errorf("%+v", e)
	}
	got, last := chunks(t, s, "two")
	if len(got) != 2 || got[0].N != 0 || got[1].N != 1 {
		t.Fatalf("%+v", got)
	}
	s.body.Close()
	w.logs.write("main", 1, 2, "1mthree\n")
	w.logs.end()
	s = b.events("/builds/900/log", "Last-Event-ID", last.id)
	got, last = chunks(t, s, "")
	if len(got) != 1 || got[0].N != 2 || got[0].HTML != `<span class="f2">three</span>`+"\n" || last.kind != "end" {
		t.Errorf("%+v, %+v", got, last)
	}
}

// A stream that breaks is opened again by the page: the reader notices nothing.
func TestLogStreamBreaks(t *testing.T) {
	w := newWorld(t)
	b := w.visitor(vera)
	s := b.events("/builds/900/log")
	s.next("hello")
	var all []chunkView
	for i := range 4 {
		w.logs.write("main", 1, i, fmt.Sprintf("line %d.\n", i))
		got, _ := chunks(t, s, fmt.Sprintf("line %d.", i))
		all = append(all, got...)
		w.logs.breakOff()
	}
	w.logs.end()
	s.next("end")
	for i, c := range all {
		if c.N != i || len(all) != 4 {
			t.Fatalf("%+v", all)
		}
	}
}

func TestLogOfSeveralTasks(t *testing.T) {
	w := newWorld(t)
	w.logs.tasks = []string{"unit", "lint"}
	b := w.visitor(vera)
	b.wants(b.get("/builds/900"), 200, `id="attempt-1"`, `id="attempt-2"`, ">unit<", ">lint<")
	if r := b.wants(b.get("/builds/900?task=lint"), 200, `id="attempt-2"`, `data-log="/builds/900/log?task=lint"`); strings.Contains(r.body, `id="attempt-1"`) {
		t.Error("the log of another task is shown too")
	}
	w.logs.write("unit", 1, 0, "of unit\n")
	w.logs.write("lint", 2, 0, "of lint\n")
	s := b.events("/builds/900/log")
	seen := make(map[fleet.AttemptID]bool)
	var last event
	for len(seen) < 2 {
		last = s.next("chunk")
		var c chunkView
		if err := json.Unmarshal([]byte(last.data), &c); err != nil {
			t.Fatal(err)
		}
		seen[c.Attempt] = true
	}
	w.logs.write("unit", 1, 1, "more of unit\n")
	w.logs.end()
	got, _ := chunks(t, b.events("/builds/900/log", "Last-Event-ID", last.id), "")
	if len(got) != 1 || got[0].HTML != "more of unit\n" {
		t.Errorf("%+v", got)
	}
	w.logs.tasks = nil
	for i := range maxFollowed + 1 {
		w.logs.tasks = append(w.logs.tasks, fmt.Sprint("task-", i))
	}
	b.wants(b.get("/builds/900"), 200, "choose another above", "of 9 tasks, the log of task-0")
}

// A log that is longer than a reader takes loses its beginning, not its end, and
// what is missing shows by its numbers.
func TestLogIsTooLong(t *testing.T) {
	w := newWorld(t)
	piece := strings.Repeat("x", maxBehind/8-1) + "\n"
	for i := range 64 {
		w.logs.write("main", 1, i, piece)
	}
	w.logs.write("main", 1, 64, "the end\n")
	w.logs.end()
	got, _ := chunks(t, w.visitor(vera).events("/builds/900/log"), "")
	for i := 1; i < len(got); i++ {
		if got[i].N <= got[i-1].N {
			t.Errorf("chunk %d comes after %d", got[i].N, got[i-1].N)
		}
	}
	if n := len(got); n == 0 || got[n-1].N != 64 {
		t.Errorf("%d chunks, without the last", n)
	}
	q := &reel{more: make(chan struct{}, 1)}
	for i := range 64 {
		q.add(chunkView{N: i, HTML: template.HTML(piece)})
	}
	if queue, _ := q.take(); len(queue) > 8 || queue[len(queue)-1].N != 63 || queue[0].N != 64-len(queue) {
		t.Errorf("%d chunks wait", len(queue))
	}
}

func TestLogAsAFile(t *testing.T) {
	w := newWorld(t)
	b := w.visitor(vera)
	w.logs.write("main", 1, 0, "\x1b[32m<b>one</b>\n")
	w.logs.write("main", 1, 1, "two\n")
	w.logs.end()
	r := b.get("/builds/900/log.txt")
	if r.status != 200 || r.body != "\x1b[32m<b>one</b>\ntwo\n" || r.header.Get("Content-Type") != "text/plain; charset=utf-8" ||
		r.header.Get("Content-Disposition") != `attachment; filename="build-900.log"` {
		t.Errorf("%+v", r)
	}
	b.wants(b.get("/builds/77/log.txt"), 404, "there is no build 77")
	if r := w.browser().get("/builds/900/log"); r.status != http.StatusSeeOther {
		t.Errorf("without a session: %d", r.status)
	}
}

func TestPlacesInALog(t *testing.T) {
	p := places{"main": {Attempt: 3, Next: 17, Paint: "2.0.1.1b5b"}, "a b": {Attempt: 4}}
	if got := placesOf(p.String()); got["main"] != p["main"] || got["a b"] != p["a b"] {
		t.Errorf("%+v", got)
	}
	for _, wrong := range []string{"", "x", "!!!", "bnVsbA", "WzFd", strings.Repeat("e", 1<<18)} {
		if got := placesOf(wrong); got == nil || len(got) != 0 {
			t.Errorf("%q: %+v", wrong, got)
		}
	}
}
