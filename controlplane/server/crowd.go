package server

import (
	"container/list"
	"net"
	"net/http"
	"sync"
	"syscall"
)

// crowd bounds the connections. When there are too many, the one that has waited
// longest without a request is closed: whoever opens connections and says
// nothing pushes out others of the kind, and nobody who is being answered.
type crowd struct {
	most int

	mu      sync.Mutex
	waiting *list.List                 // of net.Conn, the longest first
	places  map[net.Conn]*list.Element // of all that are open; nil when being answered
}

func newCrowd(most int) *crowd {
	return &crowd{most: most, waiting: list.New(), places: make(map[net.Conn]*list.Element)}
}

// connsHere returns how many connections may be open in this process: the other
// half of its files are the stores' and the node's own connections.
func connsHere() int {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return maxConns
	}
	return int(min(files.Cur/2, maxConns))
}

// note is http.Server's ConnState.
func (c *crowd) note(conn net.Conn, now http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.places[conn]; e != nil {
		c.waiting.Remove(e)
	}
	switch now {
	case http.StateNew, http.StateIdle:
		c.places[conn] = c.waiting.PushBack(conn)
	case http.StateActive:
		c.places[conn] = nil
	default:
		delete(c.places, conn)
	}
	if len(c.places) <= c.most {
		return
	}
	if longest := c.waiting.Front(); longest != nil {
		gone := c.waiting.Remove(longest).(net.Conn)
		delete(c.places, gone)
		_ = closeNow(gone)
	}
}

// closeNow closes a connection without a word: a TLS connection says goodbye
// for as long as the other side takes to listen.
func closeNow(c net.Conn) error {
	if under, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = under.NetConn()
	}
	return c.Close()
}
