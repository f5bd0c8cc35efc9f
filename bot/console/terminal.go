package console

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

const prompt = "footplate> "

// terminal is a prompt on a terminal in raw mode. A goroutine reads the keys all
// the time, so that Ctrl-C is noticed while a command runs.
type terminal struct {
	*term.Terminal
	c     *console
	file  *os.File
	saved *term.State
	keys  chan []byte

	mu        sync.Mutex
	interrupt context.CancelFunc // of the command that runs; nil at the prompt
}

// typeAhead is how many bunches of keys are kept while a command runs.
const typeAhead = 64

func openTerminal(ctx context.Context, c *console, f *os.File) (*terminal, error) {
	saved, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("open terminal: %w", err)
	}
	t := &terminal{c: c, file: f, saved: saved, keys: make(chan []byte, typeAhead)}
	t.Terminal = term.NewTerminal(struct {
		io.Reader
		io.Writer
	}{&keyReader{keys: t.keys, done: ctx.Done()}, c.Config.Out}, prompt)
	t.AutoCompleteCallback = t.tab(ctx)
	go t.pump() // ends with the program: a read of a terminal cannot be called off
	return t, nil
}

func (t *terminal) close() {
	fmt.Fprintln(t.Terminal)
	_ = term.Restore(int(t.file.Fd()), t.saved)
}

const ctrlC = 3

// pump reads keys. While a command runs, Ctrl-C interrupts it.
func (t *terminal) pump() {
	defer close(t.keys)
	for {
		b := make([]byte, 256)
		n, err := t.file.Read(b)
		if err != nil {
			return
		}
		b = b[:n]
		t.mu.Lock()
		interrupt := t.interrupt
		t.mu.Unlock()
		if interrupt == nil {
			t.keys <- b
			continue
		}
		if bytes.IndexByte(b, ctrlC) >= 0 {
			interrupt()
			continue
		}
		select {
		case t.keys <- b:
		default: // nobody types that far ahead
		}
	}
}

// keyReader gives the keys to the line editor.
type keyReader struct {
	keys <-chan []byte
	done <-chan struct{}
	rest []byte
}

func (r *keyReader) Read(b []byte) (int, error) {
	if len(r.rest) == 0 {
		var ok bool
		select {
		case r.rest, ok = <-r.keys:
			if !ok {
				return 0, io.EOF
			}
		case <-r.done:
			return 0, io.EOF
		}
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (t *terminal) read(context.Context) (string, error) {
	if w, h, err := term.GetSize(int(t.file.Fd())); err == nil && w > 0 {
		_ = t.SetSize(w, h)
	}
	line, err := t.ReadLine()
	if err == term.ErrPasteIndicator {
		err = nil
	}
	return line, err
}

func (t *terminal) confirm(ctx context.Context) (bool, error) {
	t.setInterrupt(nil)
	t.SetPrompt("type yes to confirm> ")
	defer t.SetPrompt(prompt)
	line, err := t.read(ctx)
	if err == io.EOF {
		return false, nil
	}
	return strings.TrimSpace(line) == "yes", err
}

func (t *terminal) running(ctx context.Context, f func(context.Context)) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t.setInterrupt(cancel)
	defer t.setInterrupt(nil)
	f(ctx)
}

func (t *terminal) setInterrupt(f context.CancelFunc) {
	t.mu.Lock()
	t.interrupt = f
	t.mu.Unlock()
}

// tab completes the word before the cursor.
func (t *terminal) tab(ctx context.Context) func(line string, pos int, key rune) (string, int, bool) {
	return func(line string, pos int, key rune) (string, int, bool) {
		if key != '\t' {
			return "", 0, false
		}
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		done, offers := complete(line[:pos], func(words []string) []string { return t.c.Commands.Complete(ctx, words) })
		if len(offers) > 0 {
			fmt.Fprintln(t.Terminal, strings.Join(offers, "  "))
		}
		return done + line[pos:], len(done), true
	}
}

// complete returns line with its last word completed as far as all candidates
// agree, and the candidates when that adds nothing.
func complete(line string, candidates func(words []string) []string) (done string, offers []string) {
	words := strings.Fields(line)
	if len(words) > 0 && words[0] == "footplate" {
		words = words[1:]
	}
	if line == "" || strings.HasSuffix(line, " ") {
		words = append(words, "")
	}
	if len(words) == 0 {
		words = []string{""}
	}
	last := words[len(words)-1]
	found := candidates(words)
	if len(found) == 0 {
		return line, nil
	}
	common := found[0]
	for _, f := range found[1:] {
		for !strings.HasPrefix(f, common) {
			common = common[:len(common)-1]
		}
	}
	switch {
	case !strings.HasPrefix(common, last):
		return line, nil
	case len(found) == 1:
		return strings.TrimSuffix(line, last) + common + " ", nil
	case common == last:
		return line, found
	}
	return strings.TrimSuffix(line, last) + common, nil
}
