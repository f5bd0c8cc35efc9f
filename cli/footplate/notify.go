package main

import (
	"net"
	"os"

	"footplate/cli"
)

// notifyReads is what notifyReady reads.
func notifyReads() cli.Variable {
	return cli.Variable{Name: "NOTIFY_SOCKET", Help: "set by systemd, which is told when the process is up"}
}

// notifyReady tells systemd, when it has started this process and asked to be
// told, that the process is up: so "systemctl restart" returns when it is.
func notifyReady() error {
	at := os.Getenv("NOTIFY_SOCKET")
	if at == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: at, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte("READY=1"))
	return err
}
