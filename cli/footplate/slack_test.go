package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"footplate/bot/slack"
	"footplate/bot/slack/slacktest"
)

// opsChannel is the channel of slacktest in which everything is logged.
const opsChannel = "C0OPS"

// slackPlant is a plant whose nodes run the chat in Slack.
func slackPlant(t *testing.T) (*plant, *slacktest.Server) {
	s, err := slacktest.Start(slacktest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	p := startPlant(t, plantConfig{
		nodes: 3, hosts: 1, slots: 2, fence: "4s", suspect: "2s",
		env: []string{
			slack.EnvBotToken + "=" + slacktest.BotToken, slack.EnvAppToken + "=" + slacktest.AppToken,
			slack.EnvChannel + "=" + opsChannel, slack.EnvAPIURL + "=" + s.URL(),
		},
	})
	return p, s
}

// inSlack returns the numbers of the entries whose lines are in the channel, in
// the order in which they came. The lines of one post stand under one another.
func inSlack(s *slacktest.Server) (entries []int) {
	mark := regexp.MustCompile(`\[#(\d+)(?:-(\d+), \d+ times)?\]`)
	for _, m := range s.Messages(opsChannel) {
		for _, found := range mark.FindAllStringSubmatch(m.Text, -1) {
			from, _ := strconv.Atoi(found[1])
			to := from
			if found[2] != "" {
				to, _ = strconv.Atoi(found[2])
			}
			for ; from <= to; from++ {
				entries = append(entries, from)
			}
		}
	}
	return entries
}

// TestSlackChannel: every line of the channel gets into Slack once and in order,
// while leaders die and Slack is away; and a command in Slack is done by the role
// that was granted.
func TestSlackChannel(t *testing.T) {
	p, s := slackPlant(t)
	p.must("access", "grant", "slack:"+slacktest.Team+"/U0ALICE", "operator")
	said := 0
	say := func(n int) {
		for range n {
			said++
			p.must("org", "set", fmt.Sprintf("org-%d", said))
		}
	}
	say(3)
	p.kill(p.leader())
	say(3)
	s.Outage(true)
	say(3)
	l := p.leader()
	p.kill(l)
	for _, n := range p.nodes {
		if n.cmd == nil {
			p.start(n)
		}
	}
	say(3)
	s.Outage(false)
	p.wait(90*time.Second, "the last line in Slack", func() bool {
		for _, m := range s.Messages(opsChannel) {
			if strings.Contains(m.Text, fmt.Sprintf(`"org-%d"`, said)) {
				return true
			}
		}
		return false
	})
	for i := range said {
		name := fmt.Sprintf(`made org "org-%d"`, i+1)
		seen := 0
		for _, m := range s.Messages(opsChannel) {
			seen += strings.Count(m.Text, name)
		}
		if seen != 1 {
			t.Errorf("%s is in Slack %d times", name, seen)
		}
	}
	entries := inSlack(s)
	for i := 1; i < len(entries); i++ {
		if entries[i] <= entries[i-1] {
			t.Errorf("entry %d comes after entry %d in Slack", entries[i], entries[i-1])
		}
	}

	// The sockets are opened again some seconds after the outage.
	p.wait(60*time.Second, "Slack to take a command", func() bool {
		return s.Slash("U0ALICE", opsChannel, "org set from-slack --slots 3") == nil
	})
	p.wait(20*time.Second, "what was done from Slack", func() bool {
		out, _, _ := p.run("audit", "tail", "-o", "jsonl")
		return strings.Contains(out, `"by":"slack:`+slacktest.Team+`/U0ALICE"`) && strings.Contains(out, "from-slack")
	})
	p.must("audit", "verify")
}
