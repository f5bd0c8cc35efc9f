package page

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"html/template"
	"io/fs"
	"mime"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"footplate/fleet"
)

// asset is a file that is served as it is.
type asset struct {
	data []byte
	kind string
	tag  string // of its content
}

func readAssets() (map[string]asset, error) {
	out := make(map[string]asset)
	list, err := fs.ReadDir(files, "static")
	if err != nil {
		return nil, fmt.Errorf("assets of the page: %w", err)
	}
	for _, f := range list {
		data, err := files.ReadFile("static/" + f.Name())
		if err != nil {
			return nil, fmt.Errorf("assets of the page: %w", err)
		}
		sum := sha256.Sum256(data)
		out[f.Name()] = asset{data, mime.TypeByExtension(path.Ext(f.Name())), hex.EncodeToString(sum[:6])}
	}
	return out, nil
}

// assetPath is where an asset is served: under another path when it changes, so
// that browsers can keep it.
func (p *Page) assetPath(name string) string { return "/static/" + name + "?v=" + p.assets[name].tag }

func (p *Page) static(w http.ResponseWriter, r *http.Request) {
	a, ok := p.assets[r.PathValue("file")]
	if !ok {
		http.NotFound(w, r)
		return
	}
	h := w.Header()
	h.Set("Content-Type", a.kind)
	h.Set("ETag", `"`+a.tag+`"`)
	h.Set("Cache-Control", "no-cache")
	if r.URL.Query().Get("v") == a.tag {
		h.Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(a.data))
}

func (p *Page) favicon(w http.ResponseWriter, r *http.Request) {
	http.Redirect(w, r, p.assetPath("icon.svg"), http.StatusMovedPermanently)
}

// views are the templates: pages, each in the common frame, and pieces.
type views struct {
	pages  map[string]*template.Template
	pieces *template.Template
	of     *Page
}

// frame is what a page stands in.
type frame struct {
	Title   string
	Here    string // the page's name
	Version string
	Cluster string
	Node    fleet.NodeID
	Visit   *visit // nil on the login form
	Prefill string
	Key     string
	Body    any
}

func readViews(p *Page) (*views, error) {
	funcs := template.FuncMap{
		"asset":   p.assetPath,
		"visible": func(s any) string { return visible(fmt.Sprint(s)) },
		"ask":     ask,
		"quote":   func(s any) string { return quote(fmt.Sprint(s)) },
		"time":    timeCell,
		"short":   short,
		"lower":   strings.ToLower,
		"join":    func(words ...any) string { return fmt.Sprint(words...) },
		"ago":     func(t fleet.Time) string { return short(max(0, fleet.TimeOf(time.Now()).Sub(t))) },
	}
	common, err := template.New("").Funcs(funcs).ParseFS(files, "templates/pieces.html", "templates/frame.html")
	if err != nil {
		return nil, fmt.Errorf("templates of the page: %w", err)
	}
	v := &views{pages: make(map[string]*template.Template), pieces: common, of: p}
	for _, name := range []string{"home", "login", "ask", "failed", "builds", "build", "audit", "entry"} {
		t, err := common.Clone()
		if err == nil {
			t, err = t.ParseFS(files, "templates/"+name+".html")
		}
		if err != nil {
			return nil, fmt.Errorf("templates of the page: %w", err)
		}
		v.pages[name] = t
	}
	return v, nil
}

// page answers with a whole page.
func (v *views) page(w http.ResponseWriter, status int, name string, visit *visit, title string, body any) {
	f := frame{
		Title: visible(title), Here: name, Version: v.of.cfg.Version, Cluster: v.of.cfg.Cluster, Node: v.of.cfg.Node,
		Visit: visit, Body: body, Key: newKey(),
	}
	if a, ok := body.(answer); ok {
		f.Prefill = visible(a.Prefill)
	}
	v.write(w, status, v.pages[name], "frame", f)
}

// piece answers with a piece of a page.
func (v *views) piece(w http.ResponseWriter, status int, name string, body any) {
	v.write(w, status, v.pieces, name, body)
}

func (v *views) write(w http.ResponseWriter, status int, t *template.Template, name string, data any) {
	var b bytes.Buffer
	if err := t.ExecuteTemplate(&b, name, data); err != nil {
		v.of.cfg.Log.Error("a page cannot be rendered", "view", name, "err", err)
		http.Error(w, "the page cannot be shown", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes())
}

func escapeQuery(s string) string { return url.QueryEscape(s) }
