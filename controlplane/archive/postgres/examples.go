package postgres

import _ "embed" // examples.sql

//go:embed examples.sql
var examples string

// Examples returns the usual questions to the audit log, each a comment with
// the question and one line of SQL, for the documents and for people.
func Examples() string { return examples }
