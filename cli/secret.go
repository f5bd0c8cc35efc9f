package cli

import (
	"os"
	"strings"

	"footplate/fleet"
)

// Secret returns what a variable of the environment says, or what stands in the
// file that NAME_FILE names: containers and systemd hand secrets over as files,
// which do not show in the environment of a process. "" when it is not set.
func Secret(name string) (string, error) {
	value, file := os.Getenv(name), os.Getenv(name+"_FILE")
	if file == "" {
		return value, nil
	}
	if value != "" {
		return "", fleet.Invalidf("both %s and %s_FILE are set", name, name).WithHint("leave one of them out")
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return "", fleet.Invalidf("%s_FILE: %s", name, fileError(err)).WithHint("it names a file that holds the secret and nothing else")
	}
	value = strings.TrimRight(string(data), "\r\n")
	switch {
	case value == "":
		return "", fleet.Invalidf("%s_FILE: the file %q is empty", name, file).WithHint("it names a file that holds the secret and nothing else")
	case strings.ContainsAny(value, "\r\n\x00"):
		return "", fleet.Invalidf("%s_FILE: the file %q has more than one line", name, file).WithHint("it names a file that holds the secret and nothing else")
	}
	return value, nil
}
