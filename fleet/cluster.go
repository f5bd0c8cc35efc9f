package fleet

import (
	"fmt"
	"strconv"
	"strings"
)

// ClusterName is what a cluster is called where histories could be mixed up: in
// every call, in exports of the record, and in the shared archive. It is the
// cluster's id, and from the second recovery epoch on the epoch with it: a
// cluster that was recovered goes on from an earlier state, and what was of the
// epoch before is not of it any more.
func ClusterName(id string, epoch uint64) string {
	if epoch <= 1 {
		return id
	}
	return fmt.Sprintf("%s/%d", id, epoch)
}

// ParseCluster takes a ClusterName apart.
func ParseCluster(name string) (id string, epoch uint64, err error) {
	id, digits, ok := strings.Cut(name, "/")
	epoch = 1
	if ok {
		epoch, err = strconv.ParseUint(digits, 10, 64)
	}
	if err != nil || id == "" || ClusterName(id, epoch) != name {
		return "", 0, Invalidf("%q is not the name of a cluster", name).WithHint("its id, or ID/EPOCH")
	}
	return id, epoch, nil
}
