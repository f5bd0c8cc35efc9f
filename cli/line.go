package cli

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"footplate/controlplane/op"
	"footplate/fleet"
	"footplate/fleet/buildfile"
)

// line is a typed command line of one operation. What only a shell knows (the
// flags of the program itself, files, names on standard input, short flags) is
// taken out of it, so that the rest reads as it would in chat and is parsed by
// the one parser of package op.
type line struct {
	op     *op.Op
	words  []string // after the operation's name
	help   bool
	follow bool   // --follow of build submit, which only the shell has
	file   string // of --file; "" when it is not given
}

// maxFile bounds a build file: what is longer is not one.
const maxFile = 1 << 20

// readLine cuts the words after an operation's name. Flags of the program are
// given to set.
func readLine(o *op.Op, words []string, set *settings) (line, error) {
	l := line{op: o}
	for i := 0; i < len(words); i++ {
		w := words[i]
		if w == "--" {
			l.words = append(l.words, words[i:]...)
			break
		}
		if d, ok := strings.CutPrefix(w, "\u2014"); ok {
			w = "--" + d
		}
		if w == "-h" || w == "--help" {
			l.help = true
			continue
		}
		name, value, given := strings.Cut(w, "=")
		switch {
		case name == "-f" && hasFlag(o, "file"):
			name = "--file"
		case name == "-f" && hasFlag(o, "follow"):
			name = "--follow"
		case name == "-o":
			name = "--output"
		}
		flag, ok := strings.CutPrefix(name, "--")
		if !ok {
			l.words = append(l.words, w)
			continue
		}
		isBool, own := flagKind(o, flag)
		if flag == "follow" && !own && followable(o) {
			if given && value != "true" && value != "false" {
				return l, fleet.Invalidf("--follow is %q; it must be true or false", value)
			}
			l.follow = value != "false"
			continue
		}
		program := !own && set.has(flag)
		if !own && !program {
			return l, unknownFlag(o, flag)
		}
		if !given && !isBool {
			if i+1 == len(words) {
				return l, fleet.Invalidf("--%s needs a value", flag)
			}
			i++
			value, given = words[i], true
		}
		switch {
		case program:
			if err := set.set(flag, value); err != nil {
				return l, err
			}
		case flag == "file" && own && isObject(o, flag):
			if l.file != "" {
				return l, fleet.Invalidf("--file is given twice")
			}
			if value == "" {
				return l, fleet.Invalidf("--file names no file").WithHint("- reads standard input")
			}
			l.file = value
		case given:
			l.words = append(l.words, name+"="+value)
		default:
			l.words = append(l.words, name)
		}
	}
	return l, nil
}

// unknownFlag says that o has no such flag, and which one may have been meant.
func unknownFlag(o *op.Op, flag string) error {
	e := fleet.Invalidf("%s has no flag --%s", o.Name, flag)
	var known []string
	for _, p := range o.Params {
		if p.Flag != "" {
			known = append(known, p.Flag)
		}
	}
	for _, opt := range op.OptionList() {
		known = append(known, opt.Flag)
	}
	for _, f := range programFlags() {
		known = append(known, f.name)
	}
	if followable(o) {
		known = append(known, "follow")
	}
	near := fleet.Nearest(flag, known)
	for _, k := range known {
		if flag != "" && strings.HasPrefix(k, flag) {
			near = k
			break
		}
	}
	if near == "" {
		return e.WithHint("footplate help %s lists them", o.Name)
	}
	return e.WithHint("did you mean --%s?", near)
}

// followable reports whether the shell has a --follow for o, beside the
// operation's own flags.
func followable(o *op.Op) bool { return o.Name == "build submit" }

func hasFlag(o *op.Op, flag string) bool { _, ok := flagKind(o, flag); return ok }

func flagKind(o *op.Op, flag string) (isBool, known bool) {
	if flag == "" {
		return false, false
	}
	for _, p := range o.Params {
		if p.Flag == flag {
			return p.Bool, true
		}
	}
	for _, opt := range op.OptionList() {
		if opt.Flag == flag {
			return opt.Bool, true
		}
	}
	return false, false
}

func isObject(o *op.Op, flag string) bool {
	return slices.ContainsFunc(o.Params, func(p op.Param) bool { return p.Flag == flag && p.Type == "object" })
}

// given reports whether a flag stands in the line.
func (l *line) given(flag string) bool {
	for _, w := range l.words {
		if w == "--" {
			return false
		}
		if name, _, _ := strings.Cut(w, "="); name == "--"+flag {
			return true
		}
	}
	return false
}

// fill reads what the line refers to: a build file, and names on standard
// input. It reports whether it has read from in.
func (l *line) fill(in io.Reader) (readIn bool, err error) {
	if l.file != "" {
		name, data := l.file, []byte(nil)
		if name == "-" {
			name, readIn = "standard input", true
			data, err = readBounded(in)
		} else {
			data, err = readFile(name)
		}
		if err != nil {
			return readIn, err
		}
		if err := l.buildFile(name, data); err != nil {
			return readIn, err
		}
	}
	literal := false
	for i := 0; i < len(l.words); i++ {
		if l.words[i] == "--" {
			literal = true
		}
		if l.words[i] != "-" || literal || !takesNames(l.op) {
			continue
		}
		if readIn {
			return readIn, fleet.Invalidf("standard input can be read once only")
		}
		readIn = true
		names, err := readNames(in)
		if err != nil {
			return readIn, err
		}
		if len(names) == 0 {
			return readIn, fleet.NotFoundf("%s: there are no names on standard input", l.op.Name)
		}
		l.words = slices.Replace(l.words, i, i+1, names...)
		i += len(names) - 1
	}
	return readIn, nil
}

// takesNames reports whether o takes a list by position.
func takesNames(o *op.Op) bool {
	return slices.ContainsFunc(o.Params, func(p op.Param) bool { return p.Arg != "" && p.Many })
}

func readNames(in io.Reader) ([]string, error) {
	var names []string
	sc := bufio.NewScanner(in)
	sc.Split(bufio.ScanWords)
	for sc.Scan() {
		if strings.HasPrefix(sc.Text(), "-") {
			return nil, fleet.Invalidf("standard input has %q among the names", sc.Text())
		}
		names = append(names, sc.Text())
	}
	if err := sc.Err(); err != nil {
		return nil, fleet.Invalidf("read names from standard input: %s", err)
	}
	return names, nil
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fleet.NotFoundf("%s", fileError(err))
	}
	defer f.Close()
	data, err := readBounded(f)
	if err != nil {
		return nil, fleet.AsError(err)
	}
	return data, nil
}

// fileError words what the operating system says of a file.
func fileError(err error) string {
	var pe *os.PathError
	if e, ok := err.(*os.PathError); ok {
		pe = e
		return fmt.Sprintf("cannot %s %q: %s", pe.Op, pe.Path, pe.Err)
	}
	return err.Error()
}

func readBounded(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, fleet.Invalidf("%s", fileError(err))
	}
	if len(data) > maxFile {
		return nil, fleet.Invalidf("the file is longer than %d bytes", maxFile).WithHint("is it a build file?")
	}
	return data, nil
}

// buildFile folds a build file into the line. Its org, pool and priority are
// defaults: flags override them.
func (l *line) buildFile(name string, data []byte) error {
	sub, err := buildfile.Parse(name, data)
	if err != nil {
		return err
	}
	spec, err := json.Marshal(sub.Spec)
	if err != nil {
		return fleet.Internalf("build file: %s", err)
	}
	extra := []string{"--file=" + string(spec)}
	if sub.Org != "" && !l.given("org") {
		extra = append(extra, "--org="+string(sub.Org))
	}
	if sub.Pool != "" && !l.given("pool") {
		extra = append(extra, "--pool="+string(sub.Pool))
	}
	if sub.Priority != 0 && !l.given("priority") {
		extra = append(extra, fmt.Sprintf("--priority=%d", sub.Priority))
	}
	l.words = append(extra, l.words...)
	return nil
}
