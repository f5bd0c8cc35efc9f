package cli_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// hello is the smallest program with cobra.
const hello = `package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

func main() {
	c := &cobra.Command{Use: "hello", Short: "say hello", Run: func(*cobra.Command, []string) { fmt.Println("hello") }}
	if c.Execute() != nil {
		os.Exit(1)
	}
}
`

// BenchmarkStart compares the start of the whole program, from exec to exit,
// with that of the smallest program with cobra: rounds of one after the other,
// in turn, so that both see the same machine.
func BenchmarkStart(b *testing.B) {
	dir := b.TempDir()
	source, small := filepath.Join(dir, "hello.go"), filepath.Join(dir, "hello")
	if err := os.WriteFile(source, []byte(hello), 0o644); err != nil {
		b.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", small, source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("build hello: %v\n%s", err, out)
	}
	programs := [...]string{small, footplate(b)}
	var took [len(programs)][]time.Duration
	run := func(i int) {
		start := time.Now()
		if err := exec.Command(programs[i], "--help").Run(); err != nil {
			b.Fatal(err)
		}
		took[i] = append(took[i], time.Since(start))
	}
	for range 5 {
		run(0)
		run(1)
	}
	took = [len(programs)][]time.Duration{}
	for b.Loop() {
		run(0)
		run(1)
	}
	median := func(d []time.Duration) time.Duration {
		slices.Sort(d)
		return d[len(d)/2]
	}
	base, ours := median(took[0]), median(took[1])
	b.ReportMetric(float64(base.Microseconds())/1000, "hello-ms")
	b.ReportMetric(float64(ours.Microseconds())/1000, "footplate-ms")
	b.ReportMetric(float64(ours)/float64(base), "x-hello")
}
