package cli

import (
	"regexp"
	"strings"

	"footplate/fleet"
)

// anchorWord finds anchors in a text, for example in what the channel said.
var anchorWord = regexp.MustCompile(`\b[0-9]+:[0-9a-f]{64}\b`)

// Anchors returns the anchors that --anchor gives: the value itself, when it is
// one, or all in the file that it names.
func Anchors(value string) ([]string, error) {
	if anchorWord.FindString(value) == value {
		return []string{value}, nil
	}
	data, err := readFile(value)
	if err != nil {
		return nil, fleet.AsError(err).WithHint("--anchor takes ENTRY:HASH, with the whole hash, or a file that has some")
	}
	found := anchorWord.FindAllString(string(data), -1)
	if len(found) == 0 {
		return nil, fleet.Invalidf("the file %q has no anchor", value).WithHint("ENTRY:HASH, with the whole hash, as the channel has them")
	}
	return found, nil
}

// anchorFiles puts the anchors of files into the line in their place.
func anchorFiles(words []string) ([]string, error) {
	var out []string
	for _, w := range words {
		value, ok := strings.CutPrefix(w, "--anchor=")
		if !ok {
			out = append(out, w)
			continue
		}
		anchors, err := Anchors(value)
		if err != nil {
			return nil, err
		}
		for _, a := range anchors {
			out = append(out, "--anchor="+a)
		}
	}
	return out, nil
}
