#!/usr/bin/env bash
# The demo: real builds of a real repository (this one) on a control plane of
# three processes and a fleet of four, an agent and then the leader killed with
# -9 in the middle of it, and the record of all that. ONCE=1 ends by itself.
set -euo pipefail

bin=$1
here=$(cd "$(dirname "$0")/.." && pwd)
data=$(mktemp -d "${TMPDIR:-/tmp}/footplate-demo-XXXXXX")
chmod 711 "$data"
port=${PORT:-4600}

bold=$'\e[1m' dim=$'\e[2m' off=$'\e[0m'
[ -t 1 ] || bold='' dim='' off=''
say() { printf '\n%s== %s%s\n' "$bold" "$*" "$off"; }
run() { # COMMAND..., shown as a person would type it
	local line='' word
	for word in "$@"; do
		case $word in *[!A-Za-z0-9_./:=,-]*) word="'$word'" ;; esac
		line+=" $word"
	done
	printf '%s$ footplate%s%s\n' "$dim" "$line" "$off"
	"$bin" "$@"
}
die() { printf 'demo: %s\n' "$*" >&2; exit 1; }

dev=''
finish() {
	trap - EXIT
	if [ -n "$dev" ]; then
		kill -INT "$dev" 2>/dev/null || true
		wait "$dev" 2>/dev/null || true
	fi
	rm -rf "$data"
}
trap finish EXIT
trap 'exit 130' INT TERM

began=$(date +%s)
say 'Starting three nodes and a pool of four hosts: "footplate dev"'
"$bin" dev --data "$data/dev" --listen "127.0.0.1:$port" --fence-after 10s --suspect-after 5s >"$data/dev.out" 2>&1 &
dev=$!
for _ in $(seq 600); do
	grep -q '^export ' "$data/dev.out" && break
	kill -0 "$dev" 2>/dev/null || { cat "$data/dev.out"; die 'dev ended'; }
	sleep 0.1
done
grep -q '^export ' "$data/dev.out" || { cat "$data/dev.out"; die 'dev did not come up'; }
eval "$(grep '^export ' "$data/dev.out")"
sed 's/\(FOOTPLATE_TOKEN=fp_....\)[0-9a-f]*/\1.../' "$data/dev.out"

# The channel, as everybody in it sees it.
"$bin" chat </dev/null >/dev/null 2>&1 || true
run cluster status
run pool list

# The repository that is built is this one, as a copy that every user may read.
repo=$data/footplate.git
git clone -q --bare "$here" "$repo"
chmod -R a+rX "$repo"
goroot=$(go env GOROOT)
mkdir -p "$data/go-cache" && chmod 777 "$data/go-cache"

build_file() { # NAME SLEEP
	cat <<YAML
org: demo
pool: local
source: {repo: $repo, ref: HEAD}
env:
  PATH: $goroot/bin:/usr/local/bin:/usr/bin:/bin
  GOCACHE: $data/go-cache
  GOTOOLCHAIN: local
  GOPROXY: "off"
tasks:
  - name: $1
    steps:
      - go vet ./fleet
      - go test -count=1 ./fleet
      - for i in \$(seq $2); do echo "soak \$i of $2"; sleep 1; done
YAML
}

submit() { # NAME SLEEP [FLAGS...]
	local name=$1 long=$2
	shift 2
	build_file "$name" "$long" >"$data/$name.yaml"
	"$bin" build submit -f "$data/$name.yaml" -o name "$@"
}

state() { "$bin" build show "$1" -o json | sed -n 's/^ *"state": *"\(.*\)",*$/\1/p' | head -1; }
field() { "$bin" build show "$1" -o json | sed -n "s/^ *\"$2\": *\"\\(.*\\)\",*\$/\\1/p" | tail -1; }
await() { # BUILD STATE SECONDS
	for _ in $(seq "$(($3 * 5))"); do
		[ "$(state "$1")" = "$2" ] && return 0
		sleep 0.2
	done
	"$bin" build show "$1" || true
	die "build $1 is $(state "$1"), and not $2, after $3 s"
}
await_log() { # BUILD WORDS SECONDS
	for _ in $(seq "$(($3 * 5))"); do
		"$bin" build logs "$1" 2>/dev/null | grep -q "$2" && return 0
		sleep 0.2
	done
	die "the log of build $1 does not say \"$2\" after $3 s"
}

say 'Real builds of this repository: vet and tests of package fleet'
first=$(submit vet 2)
run build logs "$first" --follow
await "$first" passed 60
run build list

say 'An agent is killed with -9 in mid-build: its tasks die with it, the build goes on elsewhere'
second=$(submit agent-killed 12)
await_log "$second" 'soak 3' 90
host=$(field "$second" host)
machine=$(grep -l "\"host\": *\"$host\"" "$data"/dev/hosts/*/machine.json | head -1)
pid=$(sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' "$machine")
printf '%s$ kill -9 %s   # the agent of host %s, which runs build %s%s\n' "$dim" "$pid" "$host" "$second" "$off"
kill -9 "$pid"
sleep 1
run build why "$second"

say 'The leader is killed with -9 while builds run: no build notices'
third=$(submit leader-killed 12)
await_log "$third" 'soak 2' 90
leader=$("$bin" cluster status -o json | sed -n 's/^ *"leader": *"\(.*\)",*$/\1/p' | head -1)
pid=$(cat "$data/dev/$leader.pid")
printf '%s$ kill -9 %s   # node %s, the leader%s\n' "$dim" "$pid" "$leader" "$off"
kill -9 "$pid"
run org set demo --slots 32 --reason 'the first operation after the leader died'
await "$second" passed 120
await "$third" passed 120
run build list
run build show "$second"
printf '%s(the log of both attempts)%s\n' "$dim" "$off"
"$bin" build logs "$second" | grep -E '^(---|#)|soak (1|12) of' || true

say 'The channel: every action, by people and by the automation, once and in order'
printf 'host list\nqueue status\n' | "$bin" chat | sed 's/^/  /'

say 'The record: proved whole on the node, and as an export'
run audit verify
"$bin" audit export >"$data/export.jsonl"
run audit verify "$data/export.jsonl"
sed '5s/"text":"/"text":"not /' "$data/export.jsonl" >"$data/tampered.jsonl"
printf '%s$ footplate audit verify tampered.jsonl   # one word added to one entry%s\n' "$dim" "$off"
if "$bin" audit verify "$data/tampered.jsonl"; then
	die 'a tampered export was taken for whole'
fi
for _ in $(seq 100); do
	[ "$("$bin" cluster status -o json | grep -cE '"role": *"(leader|follower)"')" -ge 3 ] && break
	sleep 0.2
done
run cluster status

attempts=$("$bin" build show "$second" -o json | sed -n 's/^ *"attempts": *\([0-9]*\).*/\1/p' | head -1)
alone=$("$bin" build show "$third" -o json | sed -n 's/^ *"attempts": *\([0-9]*\).*/\1/p' | head -1)
[ "$attempts" = 2 ] || die "build $second took $attempts attempts, and not 2"
[ "$alone" = 1 ] || die "build $third took $alone attempts: the leader's death cost it one"
say "Shown in $(($(date +%s) - began)) s: build $second passed at its second attempt, on another host; build $third passed at its first, across the death of the leader; the record is whole, and a forged one is found"

if [ "${ONCE:-}" != 1 ] && [ -t 0 ]; then
	printf '\nIt stays open. In another terminal:\n\n'
	grep '^export ' "$data/dev.out"
	printf '%s chat\n\nCtrl-C ends everything.\n' "$bin"
	wait "$dev"
fi
