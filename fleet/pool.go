package fleet

// Pool is a set of hosts of one kind from one provider.
type Pool struct {
	Name     PoolName `json:"name"`
	Provider string   `json:"provider"` // "local", ...
	Size     int      `json:"size"`     // hosts wanted
	Slots    int      `json:"slots"`    // tasks at once on each host
	Min      int      `json:"min"`
	Max      int      `json:"max"`

	// SuspectAfter: a host silent for this long gets no new work.
	SuspectAfter Duration `json:"suspect_after"`
	// FenceAfter: a host that no majority of the nodes has heard for this long
	// has ended its tasks by itself, and they may be given elsewhere.
	FenceAfter Duration `json:"fence_after"`

	// HeldAt is since when the guard holds back the replacement of its silent
	// hosts, and HeldWhy says why, in a sentence; empty when it does not.
	HeldAt  Time   `json:"held_at,omitempty"`
	HeldWhy string `json:"held_why,omitempty"`

	// StrandedAt is since when the leader does not have the provider: hosts are
	// neither launched nor ended. Zero when it has.
	StrandedAt Time `json:"stranded_at,omitempty"`
}

// The defaults of a pool's liveness bounds.
const (
	DefaultSuspectAfter = 10 * Second
	DefaultFenceAfter   = 30 * Second
)

// HostState is where a host is in its life.
type HostState string

// The states of a host, in the order in which it passes through them.
const (
	HostBooting HostState = "booting" // its agent has not been heard yet
	HostReady   HostState = "ready"   // may get work, unless it is cordoned or suspect
	HostEnding  HostState = "ending"  // the provider is being told to end it
	HostGone    HostState = "gone"    // the machine is no more
)

// Host is one machine in a pool.
type Host struct {
	ID          HostID      `json:"id"`
	Pool        PoolName    `json:"pool"`
	Launch      LaunchID    `json:"launch,omitempty"` // 0 when it was not launched by us
	State       HostState   `json:"state"`
	Slots       int         `json:"slots"`
	Boot        BootID      `json:"boot,omitempty"`
	Incarnation Incarnation `json:"incarnation,omitempty"`
	Version     string      `json:"version,omitempty"` // of its agent
	// FormerBoots are the boots before this one, oldest first, at most
	// MaxFormerBoots: what still comes from them is late.
	FormerBoots []BootID `json:"former_boots,omitempty"`

	Cordoned bool `json:"cordoned,omitempty"` // gets no new work
	Draining bool `json:"draining,omitempty"` // cordoned, and meant to become idle
	Retiring bool `json:"retiring,omitempty"` // to be ended as soon as it is idle

	Suspect bool   `json:"suspect,omitempty"` // silent for longer than SuspectAfter
	Lost    bool   `json:"lost,omitempty"`    // silent for longer than the fence; its attempts are lost
	Why     string `json:"why,omitempty"`     // of the newest of the above, in a sentence
	// SilentAt is since when it is suspect or lost.
	SilentAt Time `json:"silent_at,omitempty"`

	CreatedAt Time `json:"created_at"`
	JoinedAt  Time `json:"joined_at"`
	GoneAt    Time `json:"gone_at"`
}

// MaxFormerBoots bounds the boots of a host that are remembered.
const MaxFormerBoots = 8

// Schedulable reports whether h may be given new work.
func (h Host) Schedulable() bool {
	return h.State == HostReady && !h.Cordoned && !h.Draining && !h.Retiring && !h.Suspect && !h.Lost
}

// Condition says in one word what a person sees in "host list".
func (h Host) Condition() string {
	switch {
	case h.State != HostReady:
		return string(h.State)
	case h.Lost:
		return "lost"
	case h.Suspect:
		return "suspect"
	case h.Retiring:
		return "retiring"
	case h.Draining:
		return "draining"
	case h.Cordoned:
		return "cordoned"
	}
	return "ready"
}

// LaunchState is where a launch record is.
type LaunchState string

// The states of a launch.
const (
	LaunchWanted LaunchState = "wanted" // recorded; the provider may or may not have been asked
	LaunchDone   LaunchState = "done"   // the provider said that the machine exists
	LaunchFailed LaunchState = "failed" // the provider said that it will not exist
	LaunchEnded  LaunchState = "ended"  // the machine is no more
)

// Launch is the record of a machine that we asked a provider for. It is written
// before the provider is called, so a crash or a slow cloud never launches
// twice: calls are idempotent by its id.
type Launch struct {
	ID       LaunchID    `json:"id"`
	Pool     PoolName    `json:"pool"`
	Provider string      `json:"provider"`
	Host     HostID      `json:"host"`
	State    LaunchState `json:"state"`
	Why      string      `json:"why,omitempty"` // of a failure
	Tries    int         `json:"tries,omitempty"`
	At       Time        `json:"at"`
	NextAt   Time        `json:"next_at"` // not tried again before this
	// DeadAt is when its host was given up as dead, and replaced.
	DeadAt Time `json:"dead_at,omitempty"`
}
