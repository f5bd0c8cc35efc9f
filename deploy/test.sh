#!/usr/bin/env bash
# Every test. The packages in which goroutines meet run with the race detector;
# the simulator and the pure packages, which have none, run without.
set -uo pipefail

go=${GO:-go}
race=$($go list ./controlplane/replica ./controlplane/archive ./controlplane/logs ./controlplane/server \
	./controlplane/client ./controlplane/loop ./controlplane ./fleet/agent/... ./fleet/provider/... ./bot/...)
all=$($go list ./...)
plain=$(comm -23 <(sort <<<"$all") <(sort <<<"$race"))

status=0
# shellcheck disable=SC2086
$go test -count 1 -timeout 12m -parallel 4 $plain || status=1
# shellcheck disable=SC2086
$go test -race -count 1 -timeout 12m $race || status=1
exit $status
