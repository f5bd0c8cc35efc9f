// Package impure breaks each rule of the pure packages.
package impure

import (
	_ "crypto/rand" // finds: imports crypto/rand
	_ "log"         // finds: imports log
	_ "log/slog"    // finds: imports log/slog
	"maps"
	_ "math/rand"    // finds: imports math/rand
	_ "math/rand/v2" // finds: imports math/rand/v2
	_ "net"          // finds: imports net
	_ "net/http"     // finds: imports net/http
	_ "net/url"
	_ "os"      // finds: imports os
	_ "os/exec" // finds: imports os/exec
	"reflect"
	"slices"
	_ "sync"        // finds: imports sync
	_ "sync/atomic" // finds: imports sync/atomic
	"time"
)

type counter struct{ n int }

func (c *counter) count() { c.n++ }
func (c counter) value() int {
	return c.n
}

type pair struct {
	share float64 // finds: floating point
}

var (
	calls   int
	total   counter
	shared  *counter
	seen    = map[string]bool{}
	list    = []int{1, 2}
	_       = time.Now // finds: uses time.Now
	started time.Time
)

func init() { // finds: has an init function
}

func clock() {
	_ = time.Since(started) // finds: uses time.Since
	_ = time.Until(started) // finds: uses time.Until
	_ = started.Local()     // finds: uses time.Local
	_ = time.Local          // finds: uses time.Local
	<-time.After(1)         // finds: uses time.After
	<-time.Tick(1)          // finds: uses time.Tick
	time.Sleep(1)           // finds: uses time.Sleep
	_ = started.Add(time.Second).UTC()
}

func order(m map[string]int, c chan int) {
	for range m { // finds: ranges over a map
	}
	for range list {
	}
	for range maps.Keys(m) { // finds: maps.Keys is not sorted at once
	}
	_ = slices.Sorted(maps.Keys(m))
	_ = slices.Collect(maps.Values(m)) // finds: maps.Values is not sorted at once
	_ = reflect.ValueOf(m).MapKeys()   // finds: ranges over a map by reflection
	go order(m, c)                     // finds: go statement
	select {                           // finds: select statement
	case <-c:
	default:
	}
}

func arithmetic(n int) int {
	n = n * 1e3                   // a whole number
	half := 0.5                   // finds: floating point
	return int(float64(n) * half) // finds: floating point
}

func variables(local map[string]bool) {
	calls++                 // finds: changes package variable calls
	calls = 3               // finds: changes package variable calls
	seen["a"] = true        // finds: changes package variable seen
	delete(seen, "a")       // finds: changes package variable seen
	clear(seen)             // finds: changes package variable seen
	list[0], local = 1, nil // finds: changes package variable list
	total.count()           // finds: changes package variable total
	total.n = 1             // finds: changes package variable total
	shared.n = 1            // finds: changes package variable shared
	_ = &total              // finds: takes the address of package variable total
	_ = total.value()
	local["a"] = seen["a"]
	own := counter{}
	own.count()
}
