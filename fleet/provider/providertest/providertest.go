// Package providertest is the suite that every provider must pass.
package providertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"footplate/fleet"
	"footplate/fleet/provider"
)

// World is a place where a provider makes machines, as a test sees it. It is
// fresh for every test.
type World struct {
	// Open returns another provider value over the same place, as another node
	// of the control plane has it.
	Open func(t testing.TB) provider.Provider
	// Kill ends the machine of a launch at once, behind the provider's back.
	Kill func(t testing.TB, id fleet.LaunchID)
	// Started counts the machines that ever came up for a launch.
	Started func(t testing.TB, id fleet.LaunchID) int
	// Points are the fault points of a launch; Crash launches from a process
	// that dies, by kill -9, when it reaches the point.
	Points []string
	Crash  func(t testing.TB, point string, r provider.Request)
}

// goneWithin is how soon List must know that a machine has died.
const goneWithin = time.Second

// Run runs the suite; world makes a World for each test.
func Run(t *testing.T, world func(t *testing.T) World) {
	for _, test := range []struct {
		name string
		f    func(*testing.T, World)
	}{
		{"a launch makes one machine, however often it is asked for", again},
		{"launches by two nodes at once make one machine", together},
		{"a launch that comes late finds that it is over", late},
		{"terminate ends one machine and no other, and can be repeated", terminate},
		{"forget removes what is gone, and refuses what is not", forget},
		{"what is not known can be ended and forgotten", unknown},
		{"a machine that is killed is listed as gone", killed},
		{"a call whose context has ended says so and harms nothing", canceled},
		{"launch and terminate at once leave nothing that runs", crossed},
	} {
		t.Run(test.name, func(t *testing.T) { test.f(t, world(t)) })
	}
	t.Run("a launcher that dies leaves one machine or none", func(t *testing.T) {
		for _, point := range world(t).Points {
			t.Run(point, func(t *testing.T) { crash(t, world(t), point) })
		}
	})
}

// Request returns a request for a launch, as the control plane would make it.
func Request(id fleet.LaunchID) provider.Request {
	return provider.Request{
		Launch: id, Host: fleet.HostID(fmt.Sprintf("linux-%d", id)), Pool: "linux", Slots: 2,
		Join: provider.Join{Addrs: []string{"http://127.0.0.1:1"}, Token: "a-secret-of-no-worth", Cluster: "c1"},
	}
}

func again(t *testing.T, w World) {
	p, q := w.Open(t), w.Open(t)
	first := launch(t, p, 1)
	if first.Launch != 1 || first.Host != "linux-1" || first.State != provider.Running {
		t.Fatalf("launched %+v", first)
	}
	up(t, w, 1)
	for _, p := range []provider.Provider{p, q, w.Open(t)} {
		if in := launch(t, p, 1); in.State != provider.Running || in.Host != first.Host {
			t.Errorf("asked again, it answers %+v", in)
		}
	}
	one(t, w, 1)
}

func together(t *testing.T, w World) {
	const each = 4
	ps := []provider.Provider{w.Open(t), w.Open(t)}
	var all sync.WaitGroup
	for id := fleet.LaunchID(1); id <= 3; id++ {
		for range each {
			for _, p := range ps {
				all.Go(func() {
					in, err := p.Launch(t.Context(), Request(id))
					if err != nil || in.Launch != id || in.State != provider.Running {
						t.Errorf("launch %d: %+v, %v", id, in, err)
					}
				})
			}
		}
	}
	all.Wait()
	for id := fleet.LaunchID(1); id <= 3; id++ {
		one(t, w, id)
	}
	if got := list(t, ps[0]); len(got) != 3 {
		t.Errorf("listed %+v, want 3 machines", got)
	}
}

func late(t *testing.T, w World) {
	p, deposed := w.Open(t), w.Open(t)
	launch(t, p, 1)
	up(t, w, 1)
	end(t, p, 1)
	if in := launch(t, deposed, 1); in.State != provider.Gone {
		t.Errorf("launched again after its end: %+v", in)
	}
	if err := p.Forget(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if in := launch(t, deposed, 1); in.State != provider.Gone {
		t.Errorf("launched again after it was forgotten: %+v", in)
	}
	one(t, w, 1)
	for _, in := range list(t, p) {
		if in.State != provider.Gone {
			t.Errorf("listed %+v", in)
		}
	}
}

func terminate(t *testing.T, w World) {
	p, q := w.Open(t), w.Open(t)
	launch(t, p, 1)
	launch(t, p, 2)
	up(t, w, 1)
	up(t, w, 2)
	end(t, q, 1)
	if in := find(t, p, 2); in.State != provider.Running {
		t.Errorf("the other machine: %+v", in)
	}
	for _, p := range []provider.Provider{p, q} {
		if err := p.Terminate(t.Context(), 1); err != nil {
			t.Errorf("terminate again: %v", err)
		}
	}
	if in := find(t, p, 1); in.State != provider.Gone || in.Host != "linux-1" {
		t.Errorf("listed %+v; it must stay until it is forgotten", in)
	}
}

func forget(t *testing.T, w World) {
	p, q := w.Open(t), w.Open(t)
	launch(t, p, 1)
	up(t, w, 1)
	if err := p.Forget(t.Context(), 1); fleet.CodeOf(err) != fleet.CodeConflict {
		t.Errorf("forgot a machine that runs: %v", err)
	}
	if in := find(t, q, 1); in.State != provider.Running {
		t.Errorf("a refused forget left %+v", in)
	}
	end(t, p, 1)
	for _, p := range []provider.Provider{p, q, p} {
		if err := p.Forget(t.Context(), 1); err != nil {
			t.Errorf("forget: %v", err)
		}
	}
	if got := list(t, q); len(got) != 0 {
		t.Errorf("listed %+v after it was forgotten", got)
	}
}

func unknown(t *testing.T, w World) {
	p := w.Open(t)
	if got := list(t, p); len(got) != 0 {
		t.Errorf("listed %+v before anything was launched", got)
	}
	if err := p.Terminate(t.Context(), 7); err != nil {
		t.Errorf("terminate: %v", err)
	}
	if err := p.Forget(t.Context(), 7); err != nil {
		t.Errorf("forget: %v", err)
	}
}

func killed(t *testing.T, w World) {
	p, q := w.Open(t), w.Open(t)
	launch(t, p, 1)
	launch(t, p, 2)
	up(t, w, 1)
	up(t, w, 2)
	w.Kill(t, 1)
	began := time.Now()
	until(t, "a machine that was killed is listed as gone", func() bool { return find(t, q, 1).State == provider.Gone })
	if took := time.Since(began); took > goneWithin {
		t.Errorf("it took %s, and may take %s", took, goneWithin)
	}
	if in := find(t, p, 2); in.State != provider.Running {
		t.Errorf("the other machine: %+v", in)
	}
	if in := launch(t, p, 1); in.State != provider.Gone {
		t.Errorf("asked again, it answers %+v", in)
	}
	one(t, w, 1)
}

func canceled(t *testing.T, w World) {
	p := w.Open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Launch(ctx, Request(1)); !errors.Is(err, context.Canceled) || provider.IsPermanent(err) {
		t.Errorf("launch: %v", err)
	}
	if in := launch(t, p, 1); in.State != provider.Running {
		t.Fatalf("launched %+v", in)
	}
	up(t, w, 1)
	if err := p.Forget(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("forget: %v", err)
	}
	if err := p.Terminate(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("terminate: %v", err)
	}
	if _, err := p.List(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("list: %v", err)
	}
	if in := find(t, p, 1); in.State != provider.Running {
		t.Errorf("listed %+v", in)
	}
	one(t, w, 1)
	// Canceled in the middle, it has happened or not.
	for id := fleet.LaunchID(2); id < 8; id++ {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(id-2)*2*time.Millisecond)
		_, err := p.Launch(ctx, Request(id))
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("launch: %v", err)
		}
		if in := launch(t, p, id); in.State != provider.Running {
			t.Errorf("asked again, it answers %+v", in)
		}
		one(t, w, id)
	}
}

func crossed(t *testing.T, w World) {
	p, deposed := w.Open(t), w.Open(t)
	for id := fleet.LaunchID(1); id <= 6; id++ {
		var both sync.WaitGroup
		both.Go(func() {
			if _, err := deposed.Launch(t.Context(), Request(id)); err != nil {
				t.Errorf("launch: %v", err)
			}
		})
		both.Go(func() {
			if err := p.Terminate(t.Context(), id); err != nil {
				t.Errorf("terminate: %v", err)
			}
		})
		both.Wait()
		// The launch may have come first or last. What is listed can be ended.
		for _, in := range list(t, p) {
			if in.Launch == id && in.State == provider.Running {
				end(t, p, id)
			}
		}
		if n := w.Started(t, id); n > 1 {
			t.Errorf("%d machines for launch %d", n, id)
		}
	}
}

func crash(t *testing.T, w World, point string) {
	w.Crash(t, point, Request(1))
	p, q := w.Open(t), w.Open(t)
	var answers [2]provider.Instance
	var both sync.WaitGroup
	for i, p := range []provider.Provider{p, q} {
		both.Go(func() {
			in, err := p.Launch(t.Context(), Request(1))
			if err != nil {
				t.Errorf("launch after the crash: %v", err)
			}
			answers[i] = in
		})
	}
	both.Wait()
	// A machine, or the word that none will come: but no machine unknown to us.
	settled := func() (in provider.Instance, ok bool) {
		in = find(t, p, 1)
		return in, in.State == provider.Gone || in.State == provider.Running && w.Started(t, 1) == 1
	}
	until(t, "the launch is settled", func() bool { _, ok := settled(); return ok })
	in, _ := settled()
	if n := w.Started(t, 1); n > 1 || n == 0 && in.State == provider.Running {
		t.Errorf("%d machines, listed as %+v; answers %+v", n, in, answers)
	}
	end(t, p, 1)
	if n := w.Started(t, 1); n > 1 {
		t.Errorf("%d machines", n)
	}
}

// launch asks for a machine and fails the test on an error.
func launch(t *testing.T, p provider.Provider, id fleet.LaunchID) provider.Instance {
	t.Helper()
	in, err := p.Launch(t.Context(), Request(id))
	if err != nil {
		t.Fatalf("launch %d: %v", id, err)
	}
	return in
}

func list(t *testing.T, p provider.Provider) []provider.Instance {
	t.Helper()
	all, err := p.List(t.Context())
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	if !slices.IsSortedFunc(all, func(a, b provider.Instance) int { return int(a.Launch) - int(b.Launch) }) {
		t.Errorf("not in the order of their launches: %+v", all)
	}
	return all
}

// find returns what is listed of a launch.
func find(t *testing.T, p provider.Provider, id fleet.LaunchID) provider.Instance {
	t.Helper()
	all := list(t, p)
	i := slices.IndexFunc(all, func(in provider.Instance) bool { return in.Launch == id })
	if i < 0 {
		t.Fatalf("launch %d is not listed: %+v", id, all)
	}
	return all[i]
}

// end ends a machine and waits until it is gone.
func end(t *testing.T, p provider.Provider, id fleet.LaunchID) {
	t.Helper()
	if err := p.Terminate(t.Context(), id); err != nil {
		t.Fatalf("terminate %d: %v", id, err)
	}
	until(t, "a machine that was ended is gone", func() bool { return find(t, p, id).State == provider.Gone })
}

// up waits until the machine of a launch has come up.
func up(t *testing.T, w World, id fleet.LaunchID) {
	t.Helper()
	until(t, fmt.Sprintf("the machine of launch %d is up", id), func() bool { return w.Started(t, id) > 0 })
}

// one checks that a launch has made exactly one machine.
func one(t *testing.T, w World, id fleet.LaunchID) {
	t.Helper()
	up(t, w, id)
	if n := w.Started(t, id); n != 1 {
		t.Errorf("%d machines for launch %d", n, id)
	}
}

// until waits for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for deadline := time.Now().Add(15 * time.Second); !ok(); <-look.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}
