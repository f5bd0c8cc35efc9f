// Package catalog lists every operation, one file a noun. To add one, write its
// value and its function in the file of its noun, and name it in All: every
// surface has it then, and the tests of this package check it.
//
// The package is pure: its mutations run in Apply.
package catalog

import "footplate/controlplane/op"

// All returns every operation, grouped by noun in the order of the reference.
func All() *op.Registry {
	return op.NewRegistry(
		PoolList, PoolShow, PoolCreate, PoolScale,
		HostList, HostShow, HostCordon, HostUncordon, HostDrain, HostRemove,
		BuildSubmit, BuildList, BuildShow, BuildWhy, BuildCancel, BuildRetry, BuildLogs, BuildRetention,
		QueueStatus, QueuePause, QueueResume,
		OrgList, OrgSet,
		AuditTail, AuditSearch, AuditShow, AuditExport, AuditVerify, AuditErase,
		AccessWhoami, AccessExplain, AccessList, AccessGrant, AccessRevoke, AccessTokenCreate, AccessTokenRevoke,
		ClusterStatus, ClusterSnapshotSave, ClusterClockStep,
		AutomationStatus, AutomationPause, AutomationResume,

		LeaderBegin, ClusterInit, ClusterRestore, ClusterUnfence, NodeJoin,
		BuildPromote, BuildAssign,
		AgentJoin, AgentReport, AttemptLose,
		HostEnrol, HostSuspect, HostLose, HostRetire, HostEnd, HostGone,
		LaunchRecord, LaunchReport, LaunchPrune, PoolHold, PoolStrand,
		BuildRetire, RefusalSettle,
		OverrideExpire, OutboxDeliver, AuditAnchor, SinkOpen, SinkSending, SinkSent, SinkDead, SinkFailing, SinkEdited,
	)
}
