// Package util breaks the rules of names.
package util

type HostManager struct{}

type Helper func()

type FleetService interface{}

type HostInfo struct{}

type StoreImpl struct{}

type HostData []byte

type Host struct{}

type manager struct{ host Host }
