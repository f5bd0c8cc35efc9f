package fleet

import (
	"errors"
	"fmt"
)

// Code classes the errors that a person may see. One table (CodeTable) maps it
// to an HTTP status and to the CLI's exit code.
type Code string

// The codes.
const (
	CodeInvalid     Code = "invalid"     // the request is wrong as it stands
	CodeNotFound    Code = "not_found"   // what it names does not exist
	CodeConflict    Code = "conflict"    // the world is not as the request assumes
	CodeDenied      Code = "denied"      // the role does not allow it, or the token is wrong
	CodeConfirm     Code = "confirm"     // disruptive, and not confirmed
	CodeApproval    Code = "approval"    // waits for a second person
	CodeUnavailable Code = "unavailable" // no leader or unreachable, and nothing was done
	CodeUnknown     Code = "unknown"     // it may or may not have been done
	CodeInternal    Code = "internal"    // our fault
)

// Error is the one error type for everything that a person may see, the same
// on every surface. Msg is lower case, has no full stop, and names the object;
// Hint says what to do next, where there is something.
type Error struct {
	Code Code   `json:"code"`
	Msg  string `json:"msg"`
	Hint string `json:"hint,omitempty"`
	// Plan is what a disruptive operation would do, with CodeConfirm.
	Plan *Plan `json:"plan,omitempty"`
}

func (e *Error) Error() string { return e.Msg }

// WithHint returns a copy of e that says what to do next.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

func errorf(c Code, format string, args []any) *Error {
	return &Error{Code: c, Msg: fmt.Sprintf(format, args...)}
}

// Invalidf makes a CodeInvalid error.
func Invalidf(format string, args ...any) *Error { return errorf(CodeInvalid, format, args) }

// NotFoundf makes a CodeNotFound error.
func NotFoundf(format string, args ...any) *Error { return errorf(CodeNotFound, format, args) }

// Conflictf makes a CodeConflict error.
func Conflictf(format string, args ...any) *Error { return errorf(CodeConflict, format, args) }

// Deniedf makes a CodeDenied error.
func Deniedf(format string, args ...any) *Error { return errorf(CodeDenied, format, args) }

// Unavailablef makes a CodeUnavailable error: nothing was done.
func Unavailablef(format string, args ...any) *Error { return errorf(CodeUnavailable, format, args) }

// Unknownf makes a CodeUnknown error: it may or may not have been done.
func Unknownf(format string, args ...any) *Error { return errorf(CodeUnknown, format, args) }

// Internalf makes a CodeInternal error.
func Internalf(format string, args ...any) *Error { return errorf(CodeInternal, format, args) }

// AsError returns err as an *Error. Anything that is not one becomes a
// CodeInternal error with err's text; nil stays nil.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return Internalf("%s", err)
}

// CodeOf returns the code of err, "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	return AsError(err).Code
}

// CodeMeaning is what a code is on HTTP and on the command line.
type CodeMeaning struct {
	Code  Code
	HTTP  int    // status
	Exit  int    // of the CLI; frozen
	Means string // for the reference
}

// CodeTable lists every code with its HTTP status and exit code. Exit codes
// are frozen: scripts depend on them.
func CodeTable() []CodeMeaning {
	return []CodeMeaning{
		{"", 200, 0, "done"},
		{CodeInternal, 500, 1, "failed"},
		{CodeInvalid, 400, 2, "bad usage"},
		{CodeConfirm, 409, 2, "not confirmed: repeat with --yes, or look at --dry-run first"},
		{CodeDenied, 403, 3, "refused: the role does not allow it, or the token is wrong"},
		{CodeApproval, 202, 4, "waiting for approval"},
		{CodeNotFound, 404, 5, "not found"},
		{CodeConflict, 409, 6, "conflict: the world is not as the request assumes"},
		{CodeUnavailable, 503, 7, "no leader or unreachable, and nothing was done"},
		{CodeUnknown, 504, 8, "outcome unknown: ask again with the same key"},
	}
}

// Meaning returns the row of CodeTable for c.
func (c Code) Meaning() CodeMeaning {
	for _, m := range CodeTable() {
		if m.Code == c {
			return m
		}
	}
	return CodeInternal.Meaning()
}

// Plan is what an operation would do, shown by --dry-run and before a
// confirmation.
type Plan struct {
	Lines []string `json:"lines"` // one change a line, in the operator's words
	Hash  string   `json:"hash"`  // binds a confirmation to exactly this plan
}
