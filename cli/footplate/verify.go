package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"footplate/cli"
	"footplate/controlplane/archive"
	"footplate/controlplane/op"
	"footplate/fleet"
)

// exportBegins tells an export, whole or not, from a file that was never one.
const exportBegins = `{"format":"footplate-audit/`

// verifyFile is "audit verify FILE [ENTRY:HASH...]": it checks an export without
// a server, and that it has the entries that were anchored elsewhere. The
// anchors may also be given as where the server is asked, with --anchor.
func verifyFile(_ context.Context, s cli.Surface, args []string) error {
	var anchors []archive.Anchor
	for _, arg := range args[1:] {
		words := []string{arg}
		if from, ok := strings.CutPrefix(arg, "--anchor="); ok {
			var err error
			if words, err = cli.Anchors(from); err != nil {
				return err
			}
		}
		for _, w := range words {
			a, err := op.ParseAnchor(w)
			if err != nil {
				return fleet.Invalidf("audit verify does not take %q", arg).
					WithHint("footplate audit verify FILE [ENTRY:HASH...], with hashes that were noted before")
			}
			anchors = append(anchors, archive.Anchor(a))
		}
	}
	in := s.In
	if args[0] != "-" {
		f, err := os.Open(args[0])
		if err != nil {
			return fleet.NotFoundf("there is no file %q that can be read", args[0]).WithHint("footplate audit export > %s", args[0])
		}
		defer f.Close()
		in = f
	}
	buffered := bufio.NewReader(in)
	begin, err := buffered.Peek(len(exportBegins))
	if err == nil && string(begin) != exportBegins {
		return fleet.Invalidf("%q is not an export of footplate's audit log", args[0]).WithHint("footplate audit export > FILE makes one")
	}
	r, err := archive.Verify(buffered, anchors...)
	if err != nil {
		return err
	}
	return tellVerified(s.Out, r)
}

func tellVerified(w io.Writer, r archive.Report) error {
	if r.Count == 0 {
		_, err := fmt.Fprintf(w, "the export is whole, and has no entries (cluster %s)\n", r.ClusterID)
		return err
	}
	text := fmt.Sprintf("the export is whole: entries %d to %d (%d) of cluster %s, each fits the one before it\nhead %d:%s\n",
		r.First, r.Last, r.Count, r.ClusterID, r.Last, r.Head)
	if r.Selected {
		text = fmt.Sprintf("the export is a selection: %d entries between %d and %d of cluster %s, each intact; nothing is proven of those between\n",
			r.Count, r.First, r.Last, r.ClusterID)
	}
	if r.Anchored != 0 {
		text += fmt.Sprintf("anchored up to entry %d\n", r.Anchored)
	}
	for _, a := range r.Beyond {
		text += fmt.Sprintf("the anchor of entry %d lies outside of the export\n", a.N)
	}
	_, err := io.WriteString(w, text)
	return err
}
