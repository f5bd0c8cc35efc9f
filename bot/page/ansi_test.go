package page

import (
	"html"
	"regexp"
	"strings"
	"testing"
)

func TestPaint(t *testing.T) {
	for _, r := range []struct{ name, in, want string }{
		{"plain", "a < b & c\n", "a &lt; b &amp; c\n"},
		{"a colour", "\x1b[32mok\x1b[0m done", `<span class="f3">ok</span> done`},
		{"several at once", "\x1b[1;4;97;41mx\x1b[m", `<span class="f16 g2 tb tu">x</span>`},
		{"on and off", "\x1b[1;2;3;7mx\x1b[22;23;27my", `<span class="tv tb td ti">x</span>y`},
		{"inverse", "\x1b[31;7mx", `<span class="g2">x</span>`},
		{"a colour over lines", "\x1b[31ma\nb", "<span class=\"f2\">a</span>\n<span class=\"f2\">b</span>"},
		{"of 256", "\x1b[38;5;196mx\x1b[38;5;28my\x1b[38;5;9mz", `<span class="f10">x</span><span class="f3">y</span><span class="f10">z</span>`},
		{"true colour", "\x1b[38;2;30;40;250mx\x1b[48;2;0;0;0my", `<span class="f13">x</span><span class="f13 g1">y</span>`},
		{"true colour with colons", "\x1b[38:2:30:40:250mx", `<span class="f13">x</span>`},
		{"nonsense", "\x1b[38;5mx\x1b[999;?mz", "xz"},
		{"line written over", "10%\r50%\r100%\nend", "100%\nend"},
		{"end of line as in DOS", "a\r\nb\r\n", "a\nb\n"},
		{"moves of the cursor", "a\x1b[2K\x1b[1;1Hb\x1b[?25lc", "abc"},
		{"title of a window", "a\x1b]0;rm -rf\x07b\x1b]8;;http://x\x1b\\c", "abc"},
		{"other sequences", "a\x1b(Bb\x1b=c\x1bPq#1\x1b\\d", "abcd"},
		{"controls", "a\x00\x08\x7f\x07b\tc", "ab\tc"},
		{"direction of writing", "a\u202eb\u2066c", "a\ufffdb\ufffdc"},
		{"not UTF-8", "a\xff\xfeb\xc3(", "a\ufffd\ufffdb\ufffd("},
		{"a script", "<script>alert(1)</script>\x1b[31m\"'", `&lt;script&gt;alert(1)&lt;/script&gt;<span class="f2">&#34;&#39;</span>`},
	} {
		if got := new(painter).paint([]byte(r.in)); got != r.want {
			t.Errorf("%s:\n got %q\nwant %q", r.name, got, r.want)
		}
	}
}

// What is cut in two by the border of chunks is put together, also by a painter
// that was written down between them.
func TestPaintAcrossChunks(t *testing.T) {
	in := "\x1b[1;32mgrün\x1b[0m \U0001f600\r\n\x1b]0;title\x1b\\ end\x1b[38;5;196m!\n"
	want := new(painter).paint([]byte(in))
	for cut := range in {
		p := new(painter)
		got := p.paint([]byte(in[:cut]))
		got += painterOf(p.String()).paint([]byte(in[cut:]))
		if text(got) != text(want) {
			t.Errorf("cut at %d: %q, not %q", cut, got, want)
		}
	}
	// A line written over from the border on stays readable.
	p := new(painter)
	if got := p.paint([]byte("10%")) + p.paint([]byte("\r20%")) + p.paint([]byte("\r30%\n")); got != "10%\n20%\n30%\n" {
		t.Errorf("%q", got)
	}
	for _, wrong := range []string{"", "1.2.3", "a.b.c.d", "99.0.0.", "0.0.99.", "-1.0.0.", "0.0.0.zz", "0.0.0." + strings.Repeat("00", maxHeld+1)} {
		if got := painterOf(wrong); got.String() != "0.0.0." {
			t.Errorf("%q makes %s", wrong, got)
		}
	}
}

var spans4 = regexp.MustCompile(`<span class="[a-z0-9 ]+">|</span>`)

// text returns what stands in painted HTML.
func text(painted string) string { return html.UnescapeString(spans4.ReplaceAllString(painted, "")) }

func FuzzPaint(f *testing.F) {
	f.Add([]byte("\x1b[31mred\x1b[0m\r\n"), 3)
	f.Add([]byte("a\x1b]0;x\x07\xf0\x9f\x98\x80\r1\r"), 9)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		p := new(painter)
		if cut < 0 || cut > len(b) {
			cut = len(b)
		}
		for _, chunk := range [][]byte{b[:cut], b[cut:]} {
			out := p.paint(chunk)
			bare := spans4.ReplaceAllString(out, "")
			if strings.ContainsAny(bare, "<>\"'\x1b\r\x00") {
				t.Fatalf("%q gives %q", b, out)
			}
			if strings.Count(out, "<span") != strings.Count(out, "</span>") {
				t.Fatalf("%q gives %q, which is not closed", b, out)
			}
			if len(p.held) > maxHeld {
				t.Fatalf("%d bytes are held", len(p.held))
			}
			if again := painterOf(p.String()); again.style != p.style || string(again.held) != string(p.held) {
				t.Fatalf("%s is read as %s", p, again)
			}
		}
	})
}
