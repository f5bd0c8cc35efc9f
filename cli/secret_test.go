package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSecret(t *testing.T) {
	dir := t.TempDir()
	for _, row := range []struct {
		what, value, file string // the file's text; none when "-"
		want, err         string
	}{
		{what: "nothing", file: "-"},
		{what: "a value", value: "s3cret", file: "-", want: "s3cret"},
		{what: "a file", file: "s3cret", want: "s3cret"},
		{what: "a line", file: "s3cret\n", want: "s3cret"},
		{what: "a line of another system", file: "s3cret\r\n", want: "s3cret"},
		{what: "spaces", file: " s3 cret \n", want: " s3 cret "},
		{what: "both", value: "s3cret", file: "s3cret", err: "both FOOTPLATE_TOKEN and FOOTPLATE_TOKEN_FILE are set"},
		{what: "no file", file: "absent", err: `FOOTPLATE_TOKEN_FILE: cannot open "absent": no such file or directory`},
		{what: "a folder", file: dir, err: "is a directory"},
		{what: "an empty file", file: "\n", err: "is empty"},
		{what: "two lines", file: "TOKEN=s3cret\nOTHER=x\n", err: "has more than one line"},
	} {
		t.Run(row.what, func(t *testing.T) {
			file := row.file
			switch file {
			case "-":
				file = ""
			case "absent", dir:
			default:
				file = filepath.Join(t.TempDir(), "token")
				if err := os.WriteFile(file, []byte(row.file), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("FOOTPLATE_TOKEN", row.value)
			t.Setenv("FOOTPLATE_TOKEN_FILE", file)
			t.Setenv("FOOTPLATE_CONTEXT", "")
			t.Setenv("FOOTPLATE_ADDR", "http://127.0.0.1:1")
			t.Setenv("XDG_CONFIG_HOME", t.TempDir())
			to, err := (&settings{}).endpoint()
			if row.err != "" {
				if err == nil || !strings.Contains(err.Error(), row.err) || strings.Contains(err.Error(), "s3cret") {
					t.Fatalf("%q, %v; want an error: %s", to.token, err, row.err)
				}
				return
			}
			if err != nil || to.token != row.want {
				t.Fatalf("%q, %v; want %q", to.token, err, row.want)
			}
			// What is said is before what stands in the environment, as ever.
			if to, err := (&settings{token: "said"}).endpoint(); err != nil || to.token != "said" {
				t.Fatalf("--token said: %q, %v", to.token, err)
			}
		})
	}
}
