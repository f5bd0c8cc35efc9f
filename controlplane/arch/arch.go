// Package arch holds no code, only tests: those that hold the rules of the
// house which no compiler holds. Who may import whom (imports.txt); that the
// packages which run in Apply are deterministic (P13); how packages and types
// may be named; that the generated part of OPERATIONS.md is what the program
// prints.
//
// A rule that is broken is told with the place and with what to do. Each rule
// is broken once on purpose, in testdata, and must be found there.
package arch
