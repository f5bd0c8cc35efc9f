package page

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"

	"footplate/controlplane/catalog"
	"footplate/controlplane/client"
)

var pictures = flag.String("pictures", "", "directory in which the browser tests leave pictures of the pages")

// tab is a page in a real Chromium, and the person before it.
type tab struct {
	t   testing.TB
	ctx context.Context
	w   *world

	mu        sync.Mutex
	complains []string // what the browser's console has said
}

// patience of a person before a busy machine.
const patience = 30 * time.Second

func newTab(t testing.TB, w *world) *tab {
	t.Helper()
	path, err := exec.LookPath("chromium")
	switch {
	case err == nil:
	case slices.Contains(strings.Split(os.Getenv("FOOTPLATE_REQUIRE"), ","), "browser"):
		t.Fatal("chromium is needed here (FOOTPLATE_REQUIRE), and is not there")
	default:
		t.Skip("chromium is not there")
	}
	alloc, stop := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true),
	)...)
	t.Cleanup(stop)
	ctx, end := chromedp.NewContext(alloc)
	t.Cleanup(end)
	b := &tab{t: t, ctx: ctx, w: w}
	b.do(chromedp.EmulateViewport(1280, 800))
	go func() {
		for m, err := range chromedp.Console(ctx) {
			if err != nil {
				return
			}
			if m.Type == "debug" || m.Type == "info" {
				continue
			}
			b.mu.Lock()
			b.complains = append(b.complains, fmt.Sprint(m.Type, ": ", m.Text))
			b.mu.Unlock()
		}
	}()
	return b
}

func (b *tab) do(a chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	// The first call begins the browser, which lives as long as its context.
	if chromedp.FromContext(b.ctx).Target == nil {
		if err := chromedp.Do(b.ctx, a); err != nil {
			b.t.Fatal(err)
		}
		return
	}
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, a); err != nil {
		b.t.Fatalf("%v\nthe page shows: %s", err, b.text("body"))
	}
}

// eval returns the value of an expression.
func eval[T any](b *tab, expression string) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		b.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// until waits until an expression is true.
func (b *tab) until(expression string) {
	b.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	// While one page gives way to the next, nothing can be evaluated.
	for {
		ok, err := chromedp.Run(ctx, chromedp.Evaluate[bool]("Boolean("+expression+")"))
		if err == nil && ok {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			b.t.Fatalf("not so after %s: %s (%v)\nthe page shows: %s", patience, expression, err, b.text("body"))
		}
	}
}

// text returns what stands in the first element that a selector finds.
func (b *tab) text(selector string) string {
	b.t.Helper()
	return eval[string](b, fmt.Sprintf("(document.querySelector(%q) || {}).innerText || ''", selector))
}

// sees waits until text stands in an element.
func (b *tab) sees(selector, text string) {
	b.t.Helper()
	b.until(fmt.Sprintf("[...document.querySelectorAll(%q)].some(e => e.innerText.includes(%s))", selector, js(text)))
}

func js(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func (b *tab) open(path string) { b.t.Helper(); b.do(chromedp.Navigate(b.w.url + path)) }

// The keys that are no letters, as Chromium numbers them.
const (
	enter  = "\r"
	tabKey = "\t"
	escape = "\x1b"
	up     = "\x11"
	down   = "\x12"
)

var special = map[rune]input.DispatchKeyEventParams{
	'\r':   {Key: "Enter", Code: "Enter", WindowsVirtualKeyCode: 13, Text: "\r"},
	'\t':   {Key: "Tab", Code: "Tab", WindowsVirtualKeyCode: 9},
	'\x1b': {Key: "Escape", Code: "Escape", WindowsVirtualKeyCode: 27},
	'\x11': {Key: "ArrowUp", Code: "ArrowUp", WindowsVirtualKeyCode: 38},
	'\x12': {Key: "ArrowDown", Code: "ArrowDown", WindowsVirtualKeyCode: 40},
}

// arrives waits until a page is there, with its script.
func (b *tab) arrives(path string) {
	b.t.Helper()
	b.until("location.pathname === " + js(path) + " && document.readyState === 'complete'")
}

// types types as on a keyboard: a key that the page takes for a command types no
// letter.
func (b *tab) types(keys string) {
	b.t.Helper()
	for _, r := range keys {
		p, ok := special[r]
		if !ok {
			p = input.DispatchKeyEventParams{Key: string(r), Text: string(r)}
		}
		for _, p.Type = range []input.DispatchKeyEventType{input.DispatchKeyEventTypeKeyDown, input.DispatchKeyEventTypeKeyUp} {
			if _, err := chromedp.Call(b.ctx, input.DispatchKeyEvent, p); err != nil {
				b.t.Fatal(err)
			}
			p.Text = ""
		}
	}
}

func (b *tab) picture(name string) {
	b.t.Helper()
	if *pictures == "" {
		return
	}
	png, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
	if err == nil {
		err = os.WriteFile(filepath.Join(*pictures, name+".png"), png, 0o644)
	}
	if err != nil {
		b.t.Error(err)
	}
}

func (b *tab) size(width, height int64) {
	b.t.Helper()
	if width < 600 {
		b.do(chromedp.EmulateViewport(width, height, chromedp.EmulateMobile, chromedp.EmulateTouch, chromedp.EmulateScale(2)))
		return
	}
	b.do(chromedp.EmulateViewport(width, height))
}

func (b *tab) scheme(name string) {
	b.t.Helper()
	_, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}, {Name: "prefers-reduced-motion", Value: "reduce"}},
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

// hears waits until the console complains of what was to come: it does so some
// time after the page shows it.
func (b *tab) hears(complaint string) {
	b.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		b.mu.Lock()
		i := slices.IndexFunc(b.complains, func(c string) bool { return strings.Contains(c, complaint) })
		if i >= 0 {
			b.complains = slices.Delete(b.complains, i, i+1)
		}
		b.mu.Unlock()
		if i >= 0 {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("the console did not say %q within %s", complaint, patience)
		}
	}
}

// content checks that the console is silent, but for what was expected.
func (b *tab) content(expected ...string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.complains {
		if !slices.ContainsFunc(expected, func(e string) bool { return strings.Contains(c, e) }) {
			b.t.Errorf("the browser says: %s", c)
		}
	}
	b.complains = nil
}

func (b *tab) logIn(token string) {
	b.t.Helper()
	b.open("/login")
	b.until("document.activeElement.id === 'token'")
	b.types(token + enter)
	b.until("document.querySelector('#prompt')")
}

// TestBrowser is an evening at the console.
func TestBrowser(t *testing.T) {
	w := newWorld(t)
	b := newTab(t, w)
	w.does("org set acme --slots 4")
	w.does("pool create linux --provider none --size 0")

	b.open("/login")
	b.types("wrong" + enter)
	b.sees(".error", "the token is not known")
	b.hears("403 (Forbidden)")
	b.content()
	b.logIn(alice)
	b.sees("#channel .line", `made org "acme"`)
	b.sees("#detail", "linux")

	t.Run("a command with completion", func(t *testing.T) {
		b := b.in(t)
		b.types("/")
		b.until("document.activeElement.id === 'line' && document.activeElement.value === ''")
		b.types("or" + tabKey)
		b.until("document.querySelector('#line').value === 'org '")
		b.types("set a" + tabKey)
		b.until("document.querySelector('#line').value === 'org set acme '")
		b.sees("#usage", "org set ORG")
		b.types("--s")
		b.sees("#offers [role=option]", "--slots")
		b.types(down)
		b.until("document.querySelector('#line').getAttribute('aria-activedescendant') === 'offer-0'")
		b.types(enter)
		b.until("document.querySelector('#line').value === 'org set acme --slots '")
		b.types("7 --reason 'a <b>bold</b> move'" + enter)
		b.sees("#channel .answer", `changed org "acme": 7 slots`)
		b.sees("#channel .line", "a <b>bold</b> move")
		b.until("document.querySelector('#line').value === ''")

		b.types(up)
		b.until("document.querySelector('#line').value.startsWith('org set acme --slots 7')")
		b.types(enter) // a second Enter is asked about
		b.sees("#channel .answer.asks", "Once more?")
		b.types(escape)
		b.sees("#channel", "not confirmed: nothing was done")
		b.types("pool lits" + enter)
		b.sees("#channel .answer.bad", `did you mean "pool list"?`)
		b.hears("400 (Bad Request)")
		b.content()
	})

	t.Run("what is disruptive is confirmed", func(t *testing.T) {
		b := b.in(t)
		b.types("queue pause --for 10m --reason 'disk is full'" + enter)
		b.sees("#channel .answer.asks", "dispatch of all builds stops for 10m")
		b.picture("plan")
		b.types("no" + enter)
		b.until("!document.querySelector('form.confirm')")
		b.types("queue pause --for 10m --reason 'disk is full'" + enter)
		b.until("document.querySelector('form.confirm')")
		b.types("yes" + enter)
		b.sees("#channel .line", "paused dispatch of all builds for 10m")
		b.sees("#state", "dispatch is paused")
		if n := eval[int](b, "[...document.querySelectorAll('.line')].filter(l => l.innerText.includes('paused dispatch')).length"); n != 1 {
			t.Errorf("it was done %d times", n)
		}
		b.content()
	})

	t.Run("keys", func(t *testing.T) {
		b := b.in(t)
		b.types(escape)
		b.until("document.activeElement.id !== 'line'")
		b.types("?")
		b.until("document.querySelector('#keys').open")
		b.types(escape)
		b.until("!document.querySelector('#keys').open")
		b.types("k")
		b.until("document.querySelector('#channel .picked') === document.querySelector('#channel').lastElementChild")
		b.types("k")
		b.until("document.querySelector('#channel .picked') === document.querySelector('#channel').lastElementChild.previousElementSibling")
		b.types("ga")
		b.arrives("/audit")
		b.types("jj")
		b.until("document.querySelector('tbody .picked') === document.querySelectorAll('tbody tr')[1]")
		second := eval[string](b, "document.querySelector('tbody .picked a').pathname")
		b.types(enter)
		b.arrives(second)
		b.sees("body", "its hash fits")
		b.types("gc")
		b.arrives("/")
		b.content()
	})

	t.Run("the server is started again", func(t *testing.T) {
		b := b.in(t)
		b.sees("#channel .line", "paused dispatch")
		addr := strings.TrimPrefix(w.url, "http://")
		w.stopPage()
		b.sees("#link", "connection lost")
		b.picture("lost")
		w.does("org set bolt --slots 1")
		w.does("org set cola --slots 2")
		w.page = w.newPage(testKey, "cluster-1") // as another node, or after a restart
		w.startPage(addr)
		b.sees("#channel .line", `made org "cola"`)
		b.until("document.querySelector('#link').innerText === ''")
		w.does("org set dime --slots 3")
		b.sees("#channel .line", `made org "dime"`)
		ns := eval[[]int](b, "[...document.querySelectorAll('#channel .line')].map(l => +l.dataset.n)")
		for i, n := range ns {
			if n != i+1 {
				t.Fatalf("a line is missing or double: %v", ns)
			}
		}
		b.content("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE")
	})

	t.Run("the cluster is recovered", func(t *testing.T) {
		b := b.in(t)
		b.sees("#channel .line", `made org "dime"`)
		b.types("/queue sta")
		eval[bool](b, "document.querySelector('#channel').lastElementChild.classList.add('of-before') || true")
		addr := strings.TrimPrefix(w.url, "http://")
		w.stopPage()
		b.sees("#link", "connection lost")
		w.page = w.newPage(testKey, "cluster-1")
		w.page.cfg.Epoch = 2
		w.startPage(addr)
		b.sees("#channel .gap", "the cluster was recovered")
		b.sees("#channel .line", `made org "dime"`)
		b.until("!document.querySelector('#channel .of-before')")
		if typed := eval[string](b, "document.querySelector('#line').value"); typed != "queue sta" {
			t.Errorf("the prompt has %q", typed)
		}
		ns := eval[[]int](b, "[...document.querySelectorAll('#channel .line')].map(l => +l.dataset.n)")
		for i, n := range ns {
			if n != i+1 {
				t.Fatalf("a line is missing or double: %v", ns)
			}
		}
		eval[bool](b, "document.querySelector('#line').value = ''; document.activeElement.blur(); true")
		b.content("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE")
	})

	t.Run("a command while the server is away", func(t *testing.T) {
		b := b.in(t)
		addr := strings.TrimPrefix(w.url, "http://")
		w.stopPage()
		b.types("/org set echo --slots 5" + enter)
		b.sees(".answer.bad", "it is not known what came of it")
		w.startPage(addr)
		b.until("document.querySelector('#link').innerText === ''")
		b.do(chromedp.Click(".answer.bad button"))
		b.sees("#channel .line", `made org "echo"`)
		b.content("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE")
	})

	t.Run("a log that is followed", func(t *testing.T) {
		b := b.in(t)
		w.logs.write("main", 1, 0, "zero \x1b[31mred\x1b[0m <script>document.title='hacked'</script>\n")
		b.open("/builds/900")
		b.sees(".log", "zero red <script>")
		b.until("getComputedStyle(document.querySelector('.log .f2')).color !== getComputedStyle(document.querySelector('.log')).color")
		w.logs.write("main", 1, 3, "three\n")
		w.logs.write("main", 1, 1, "one\n")
		b.until("document.querySelectorAll('.log .torn').length === 1")
		w.logs.breakOff()
		w.logs.write("main", 1, 4, "four\n")
		b.sees(".log", "four")
		b.content()
		// The browser comes back to another node.
		addr := strings.TrimPrefix(w.url, "http://")
		w.stopPage()
		b.sees("#link", "connection lost")
		w.logs.write("main", 1, 5, "five\n")
		w.startPage(addr)
		b.sees(".log", "five")
		w.logs.end()
		b.sees("#log-state", "this is all of its log")
		b.sees("#build", "passed")
		got := eval[string](b, "[...document.querySelectorAll('.log > span')].map(s => s.textContent).join('')")
		if want := "zero red <script>document.title='hacked'</script>\none\nthree\nfour\nfive\n"; got != want {
			t.Errorf("%q, not %q", got, want)
		}
		if title := eval[string](b, "document.title"); title != "build 900 · footplate" {
			t.Errorf("the title is %q", title)
		}
		b.picture("build")
		b.content("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE")
	})

	t.Run("on a phone, by day and by night", func(t *testing.T) {
		b := b.in(t)
		defer b.size(1280, 800)
		for _, scheme := range []string{"light", "dark"} {
			b.scheme(scheme)
			for path, name := range map[string]string{
				"/": "console", "/builds": "builds", "/builds/900": "build", "/audit": "audit", "/audit/3": "entry", "/help?of=queue+pause": "help",
				"/ask?line=" + "org+list": "ask", "/ask?line=nonsense": "error",
			} {
				for _, width := range []int64{360, 1280} {
					b.size(width, 740)
					b.open(path)
					if path == "/" {
						b.sees("#channel .line", `made org "echo"`)
					}
					if got := eval[int64](b, "document.documentElement.scrollWidth"); got > width {
						t.Errorf("%s is %d wide on a screen of %d", path, got, width)
					}
					for _, dim := range eval[[]string](b, lowContrast) {
						t.Errorf("%s, %s: %s", path, scheme, dim)
					}
					if bare := eval[[]string](b, unlabelled); len(bare) > 0 {
						t.Errorf("%s: without a name for those who do not see them: %v", path, bare)
					}
					b.picture(fmt.Sprintf("%s-%s-%d", name, scheme, width))
				}
			}
		}
		b.content("400 (Bad Request)")
	})

	t.Run("without a session", func(t *testing.T) {
		b := b.in(t)
		b.open("/")
		b.do(chromedp.Click(".top form button"))
		b.arrives("/login")
		b.open("/builds/900")
		b.arrives("/login")
		b.until("document.activeElement.id === 'token'")
		b.types(alice + enter)
		b.arrives("/builds/900")
	})
}

// in gives the tab to a subtest.
func (b *tab) in(t *testing.T) *tab {
	b.t = t
	return b
}

// lowContrast lists texts that stand out too little from what they stand on:
// less than 4.5 to 1 (WCAG 2.2, 1.4.3).
const lowContrast = `(() => {
  const parse = c => { const m = c.match(/[\d.]+/g).map(Number); return m.length === 3 ? [...m, 1] : m; };
  const lum = ([r, g, b]) => { const f = v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }; return .2126 * f(r) + .7152 * f(g) + .0722 * f(b); };
  const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3]));
  const back = e => { if (!e) return [255, 255, 255]; const c = parse(getComputedStyle(e).backgroundColor); return c[3] === 1 ? c : over(c, back(e.parentElement)); };
  const out = new Set();
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || !e.checkVisibility() || e.closest('.sr, noscript, .skip')) continue;
    const b = back(e), t = over(parse(getComputedStyle(e).color), b);
    const [x, y] = [lum(t), lum(b)].sort((p, q) => q - p);
    const ratio = (x + .05) / (y + .05);
    if (ratio < 4.5) out.add(e.tagName + '.' + e.className + ' ' + ratio.toFixed(2) + ': ' + walk.currentNode.textContent.trim().slice(0, 30));
  }
  return [...out];
})()`

// unlabelled lists controls without a name.
const unlabelled = `[...document.querySelectorAll('input:not([type=hidden]), select, button, a, [role=img], [role=listbox]')]
  .filter(e => e.checkVisibility() && !(e.labels && e.labels.length) && !e.getAttribute('aria-label') && !e.innerText.trim())
  .map(e => e.outerHTML.slice(0, 80))`

// BenchmarkLine measures how long it takes from the acknowledgement of an
// operation until its line stands on the page, in a real browser: when operations
// come now and then, as from people, and when one caller acts as fast as it can.
// It reports the median, the 99th percentile and the maximum.
func BenchmarkLine(bench *testing.B) {
	for _, kind := range []struct {
		name       string
		operations int
		pause      time.Duration
	}{{"now and then", 100, 400 * time.Millisecond}, {"one after the other", 500, 0}} {
		bench.Run(kind.name, func(bench *testing.B) {
			w := newWorld(bench)
			b := newTab(bench, w)
			b.logIn(alice)
			w.does("org set first --slots 1")
			b.sees("#channel .line", "first")
			eval[bool](b, `window.at = {}, new MutationObserver(list => {
				const now = performance.timeOrigin + performance.now();
				for (const m of list) for (const l of m.addedNodes) if (l.dataset && l.dataset.last) window.at[l.dataset.last] = now;
			}).observe(document.querySelector('#channel'), { childList: true }), true`)
			acked := make(map[string]float64)
			for slots := range kind.operations {
				r, err := w.api.Do(context.Background(), catalog.OrgSet, &catalog.OrgSetArgs{Org: "acme", Slots: &slots}, client.Options{})
				if err != nil {
					bench.Fatal(err)
				}
				acked[fmt.Sprint(r.Entry)] = float64(time.Now().UnixMicro()) / 1000
				if kind.pause > 0 {
					<-time.After(kind.pause)
				}
			}
			b.until(fmt.Sprintf("Object.keys(window.at).length >= %d", len(acked)))
			at := eval[map[string]float64](b, "window.at")
			var took []float64
			for entry, ack := range acked {
				took = append(took, at[entry]-ack)
			}
			slices.Sort(took)
			bench.ReportMetric(took[len(took)/2], "ms-p50")
			bench.ReportMetric(took[len(took)*99/100], "ms-p99")
			bench.ReportMetric(took[len(took)-1], "ms-max")
			bench.ReportMetric(0, "ns/op")
		})
	}
}
