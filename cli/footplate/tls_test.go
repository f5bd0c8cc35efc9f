package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"footplate/fleet"
)

// by runs the CLI with nothing of the test's environment but what is given.
func by(t *testing.T, env []string, args ...string) (text string, exit int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}, env...)
	out, _ := cmd.CombinedOutput()
	return string(out), cmd.ProcessState.ExitCode()
}

// process is a footplate of the test's own, whose log can be waited for.
type process struct {
	cmd  *exec.Cmd
	file string
	done chan struct{}
}

func (p *plant) process(name string, args ...string) *process {
	p.t.Helper()
	x := &process{file: filepath.Join(p.dir, name+".log"), done: make(chan struct{})}
	out, err := os.OpenFile(x.file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer out.Close()
	x.cmd = exec.Command(binary, args...)
	x.cmd.Stdout, x.cmd.Stderr = out, out
	if err := x.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func() { _ = x.cmd.Wait(); close(x.done) }()
	p.t.Cleanup(x.kill)
	return x
}

func (x *process) kill() {
	_ = x.cmd.Process.Kill()
	<-x.done
}

func (x *process) says(text string) bool {
	b, _ := os.ReadFile(x.file)
	return bytes.Contains(b, []byte(text))
}

func (p *plant) passed(id fleet.BuildID) func() bool {
	return func() bool { return p.build(id).State == "passed" }
}

// TestTLS: three nodes with TLS; a host that enrols with a token that is good
// once, and runs builds; certificates are renewed under way; and whoever comes
// with the wrong thing is told what to do.
func TestTLS(t *testing.T) {
	p := startPlant(t, plantConfig{nodes: 3, hosts: 1, slots: 1, fence: "20s", suspect: "10s", tls: true})
	url := p.url(p.nodes[1])
	ca := "FOOTPLATE_CA=" + filepath.Join(p.certs, "ca.pem")
	token := "FOOTPLATE_TOKEN=" + p.admin

	// A host of the local provider, with the agents' shared token.
	marks := newMarks(t)
	first := p.submit(marks, 1)
	p.wait(30*time.Second, "a build of a local host", p.passed(first))

	p.must("pool", "create", "linux", "--provider", "none", "--slots", "1")
	folder, data, secret := filepath.Join(p.dir, "linux-4-tls"), filepath.Join(p.dir, "linux-4"), filepath.Join(p.dir, "join")
	token4 := func() {
		t.Helper()
		var made struct {
			Result struct{ Secret string }
		}
		out := p.must("access", "token", "create", "linux-4", "--role", "agent", "--once", "--expires", "1h", "-o", "json")
		err := json.Unmarshal([]byte(out), &made)
		if err == nil {
			err = os.WriteFile(secret, []byte(made.Result.Secret+"\n"), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	token4()
	pem, err := os.ReadFile(filepath.Join(p.certs, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.Mkdir(folder, 0o700), os.WriteFile(filepath.Join(folder, "ca.pem"), pem, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	args := []string{
		"agent", "--host", "linux-4", "--pool", "linux", "--addrs", url, "--tls", folder, "--dir", data,
		"--join-token-file", secret, "--log-format", "text",
	}
	if text, exit := by(t, nil, args[:len(args)-4]...); exit != 2 || !strings.Contains(text, "access token create linux-4 --role agent --once") {
		t.Errorf("an agent without a certificate: exit %d\n%s", exit, text)
	}
	agent := p.process("agent", args...)
	submit := func() fleet.BuildID {
		return p.submitted(p.must("build", "submit", "--org", "demo", "--pool", "linux", "--run", "echo hello", "-o", "json"))
	}
	id := submit()
	p.wait(30*time.Second, "a build of the host that has enrolled", p.passed(id))
	if info, err := os.Stat(filepath.Join(folder, "key.pem")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the agent's key: %v, %v", info, err)
	}
	// The token is gone, and the agent does not need it.
	agent.kill()
	if err := os.Remove(secret); err != nil {
		t.Fatal(err)
	}
	agent = p.process("agent", args...)
	id = submit()
	p.wait(30*time.Second, "a build after the agent was started again", p.passed(id))
	if text, exit := by(t, nil, "agent", "--host", "linux-5", "--pool", "linux", "--addrs", url, "--tls", folder, "--dir", data+"5"); exit != 2 || !strings.Contains(text, "is of agent/linux-4") {
		t.Errorf("an agent with another's certificate: exit %d\n%s", exit, text)
	}

	// New certificates, without a restart.
	before := serial(t, p.nodes[0].api)
	p.initTLS(3)
	p.wait(30*time.Second, "the new certificate", func() bool { return serial(t, p.nodes[0].api) != before })
	leader := p.leader()
	p.kill(leader) // whoever follows makes all its connections anew
	id = submit()
	p.wait(30*time.Second, "a build after the certificates were renewed", p.passed(id))
	p.start(leader)

	// A node of another authority.
	other := filepath.Join(p.dir, "other")
	if out, err := exec.Command(binary, "tls", "init", other, "--node", "n4=127.0.0.1").CombinedOutput(); err != nil {
		t.Fatalf("tls init: %v\n%s", err, out)
	}
	stranger := p.process("n4", "server", "--node", "n4", "--data", filepath.Join(p.dir, "n4"), "--listen", freeAddr(t, "127.0.0.1"),
		"--raft", freeAddr(t, "127.0.0.1"), "--join", url, "--node-token-file", p.secret("node"), "--tls", filepath.Join(other, "n4"), "--log-format", "text")
	p.wait(20*time.Second, "the stranger to be refused", func() bool { return stranger.says("unknown authority") })
	stranger.kill()
	if text, exit := by(t, nil, "server", "--node", "n2", "--data", filepath.Join(p.dir, "n5"), "--node-token-file", p.secret("node"), "--tls", filepath.Join(other, "n4")); exit != 2 || !strings.Contains(text, `node/n4, not of node "n2"`) {
		t.Errorf("a node with another's certificate: exit %d\n%s", exit, text)
	}
	p.wait(30*time.Second, "all three nodes", func() bool {
		st, err := p.status()
		return err == nil && len(st.Nodes) == 3 && st.up() == 3
	})

	// A host that is not trusted any more.
	p.must("access", "revoke", "agent:linux-4")
	p.wait(20*time.Second, "the agent to be refused", func() bool { return agent.says("void") })
	agent.kill()
	for _, name := range []string{"cert.pem", "key.pem"} {
		if err := os.Remove(filepath.Join(folder, name)); err != nil {
			t.Fatal(err)
		}
	}
	token4() // in the place of the one that was used
	p.process("agent", args...)
	id = submit()
	p.wait(30*time.Second, "a build of the host that has enrolled anew", p.passed(id))

	plain := httptest.NewServer(nil)
	defer plain.Close()
	for _, c := range []struct {
		name string
		env  []string
		args []string
		exit int
		want string
	}{
		{"with --ca", []string{token}, []string{"--addr", url, "--ca", filepath.Join(p.certs, "ca.pem"), "cluster", "status"}, 0, "leader"},
		{"with its folder, and no scheme", []string{token, "FOOTPLATE_CA=" + p.certs}, []string{"--addr", p.nodes[1].api, "cluster", "status"}, 0, "leader"},
		{"without", []string{token}, []string{"--addr", url, "cluster", "status"}, 2, "--ca FILE, or FOOTPLATE_CA"},
		{"with another authority", []string{token}, []string{"--addr", url, "--ca", other, "cluster", "status"}, 2, "is not known here"},
		{"plain HTTP to TLS", []string{token, ca}, []string{"--addr", "http://" + p.nodes[1].api, "cluster", "status"}, 2, "say https://" + p.nodes[1].api},
		{"TLS to plain HTTP", []string{token, ca}, []string{"--addr", strings.Replace(plain.URL, "http", "https", 1), "cluster", "status"}, 2, "say " + plain.URL},
		{"no such file", []string{token}, []string{"--addr", url, "--ca", "none.pem", "cluster", "status"}, 2, "none.pem"},
		{"without a token", []string{ca}, []string{"--addr", url, "cluster", "status"}, 3, "FOOTPLATE_TOKEN"},
	} {
		text, exit := by(t, c.env, c.args...)
		if exit != c.exit || !strings.Contains(text, c.want) {
			t.Errorf("%s: exit %d\n%swant exit %d, %q", c.name, exit, text, c.exit, c.want)
		}
	}
}

// serial returns the number of the certificate that a node shows.
func serial(t *testing.T, addr string) string {
	t.Helper()
	c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true}) // it is the certificate that is looked at
	if err != nil {
		return ""
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// TestTLSInit: what it says, and what it refuses.
func TestTLSInit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "certs")
	for _, c := range []struct {
		name string
		args []string
		exit int
		want string
	}{
		{"no folder", []string{"tls", "init", "--node", "n1=127.0.0.1"}, 2, "tls init --help"},
		{"no node", []string{"tls", "init", dir}, 2, "no node is named"},
		{"no host", []string{"tls", "init", dir, "--node", "n1"}, 2, "NAME=HOST"},
		{"an empty host", []string{"tls", "init", dir, "--node", "n1="}, 2, `node "n1" has no host name`},
		{"a URL", []string{"tls", "init", dir, "--node", "n1=https://10.0.0.1"}, 2, "without scheme and port"},
		{"a port", []string{"tls", "init", dir, "--node", "n1=10.0.0.1:4600"}, 2, "without scheme and port"},
		{"twice", []string{"tls", "init", dir, "--node", "n1=a", "--node", "n1=b"}, 2, "each node once"},
		{"nothing to do", []string{"tls"}, 2, "footplate tls init DIR"},
		{"the first time", []string{"tls", "init", dir, "--node", "n1=10.0.0.1,n1.example.com", "--node", "n2=::1"}, 0, "made the authority of a cluster"},
		{"again", []string{"tls", "init", dir, "--node", "n1=10.0.0.1"}, 0, "signed by the authority that is in"},
		{"help", []string{"tls", "init", "--help"}, 0, "keep DIR in a safe place"},
	} {
		if text, exit := by(t, nil, c.args...); exit != c.exit || !strings.Contains(text, c.want) {
			t.Errorf("%s: exit %d\n%swant exit %d, %q", c.name, exit, text, c.exit, c.want)
		}
	}
}
