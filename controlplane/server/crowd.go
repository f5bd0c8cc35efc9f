package server

import (
	"container/list"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// crowd bounds the connections. When there are too many, one is closed that
// nobody is being answered on: of those that have never asked anything the one
// that has waited longest, and otherwise any of those that are kept between two
// requests. Whoever opens connections and says nothing pushes out others of the
// kind.
//
// Any, and not the one that has rested longest: agents ask in turn, and who
// rests longest is who asks next. One connection too many would then cost every
// agent its own.
type crowd struct {
	most    int
	outward *atomic.Int64 // connections of the node's own, which count as well

	mu      sync.Mutex
	open    int
	idle    map[net.Conn]struct{}
	strange *list.List // of stranger, the longest first
	places  map[net.Conn]*list.Element
}

// stranger is a connection that has asked nothing yet.
type stranger struct {
	conn net.Conn
	came time.Time
}

// strangeFor is how long a connection may take until it asks something, before
// it is closed rather than one that is known.
const strangeFor = time.Second

func newCrowd(most int, outward *atomic.Int64) *crowd {
	return &crowd{
		most: most, outward: outward, idle: make(map[net.Conn]struct{}),
		strange: list.New(), places: make(map[net.Conn]*list.Element),
	}
}

// connsHere returns how many connections may be open in this process. Some
// files are kept back for the stores, for the nodes, and for what is opened
// faster than it is closed.
func connsHere() int {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return maxConns
	}
	return int(min(files.Cur-min(files.Cur/2, max(256, files.Cur/20)), maxConns))
}

// note is http.Server's ConnState.
func (c *crowd) note(conn net.Conn, now http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.idle, conn)
	if e := c.places[conn]; e != nil {
		c.strange.Remove(e)
		delete(c.places, conn)
	}
	switch now {
	case http.StateNew:
		c.open++
		c.places[conn] = c.strange.PushBack(stranger{conn, time.Now()})
	case http.StateIdle:
		c.idle[conn] = struct{}{}
	case http.StateClosed, http.StateHijacked:
		c.open--
	}
	if now == http.StateNew && c.open+int(c.outward.Load()) > c.most {
		if gone := c.spare(); gone != nil {
			_ = closeNow(gone)
		}
	}
}

// spare returns the connection that is to go; nil when everybody is being
// answered.
func (c *crowd) spare() net.Conn {
	longest := c.strange.Front()
	if longest == nil || time.Since(longest.Value.(stranger).came) < strangeFor {
		for conn := range c.idle { // a map begins anywhere
			delete(c.idle, conn)
			return conn
		}
	}
	if longest == nil {
		return nil
	}
	gone := c.strange.Remove(longest).(stranger).conn
	delete(c.places, gone)
	return gone
}

// closeNow closes a connection without a word: a TLS connection says goodbye
// for as long as the other side takes to listen.
func closeNow(c net.Conn) error {
	if under, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = under.NetConn()
	}
	return c.Close()
}
