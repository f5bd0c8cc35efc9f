package attempt

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Now reads CLOCK_BOOTTIME: nanoseconds since this machine booted, the time
// that it was suspended included. Leases are measured on it, because the
// monotonic clock stands still in a suspended machine while the control plane
// goes on counting.
func Now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("read CLOCK_BOOTTIME: %v", err)) // every kernel since 2.6.39 has it
	}
	return ts.Nano()
}
