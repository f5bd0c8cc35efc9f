#!/usr/bin/env bash
# Installs what the tests need and the machine lacks: gcc for the race detector,
# git for checkouts, iproute2 for network namespaces, PostgreSQL for the shared
# archive, Chromium for the page. Does nothing when all is there.
set -euo pipefail

missing=()
command -v gcc >/dev/null || missing+=(gcc libc6-dev)
command -v git >/dev/null || missing+=(git)
command -v ip >/dev/null || missing+=(iproute2)
compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || missing+=(postgresql-15)
command -v go >/dev/null || { echo 'go is needed: https://go.dev/dl' >&2; exit 1; }
if [ ${#missing[@]} -gt 0 ]; then
	if [ "$(id -u)" != 0 ]; then
		echo "missing: ${missing[*]}; install them, for example: sudo apt-get install ${missing[*]}" >&2
		exit 1
	fi
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >/dev/null
fi
