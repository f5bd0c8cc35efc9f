package main

import (
	"context"
	"fmt"
	"time"

	"footplate/cli"
	"footplate/controlplane/archive/postgres"
	"footplate/fleet"

	"github.com/spf13/cobra"
)

// envPostgres names the shared archive.
const envPostgres = "FOOTPLATE_POSTGRES_URL"

func postgresReads() []cli.Variable {
	return []cli.Variable{{Name: envPostgres, Help: "URL of the shared archive, with user and password; none when left out", Secret: true}}
}

// postgresCommand is "footplate postgres": the tables of the shared archive.
func postgresCommand() *cobra.Command {
	c := &cobra.Command{
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return fleet.Invalidf("postgres needs to be told what to do").WithHint("footplate postgres init")
		},
	}
	c.AddCommand(&cobra.Command{
		Use:   "init",
		Short: "make the tables of the shared archive, or bring them up to date",
		Long: `Makes the schema footplate with its tables, and the roles footplate_writer and footplate_reader,
in the database that FOOTPLATE_POSTGRES_URL names; or brings them up to date. It takes the owner of the
database, who may make roles. The nodes do it themselves when their user may: with this they need no more than
a member of footplate_writer, who can only insert and select.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			url, err := cli.Secret(envPostgres)
			if err != nil {
				return err
			}
			if url == "" {
				return fleet.Invalidf("it is not said where the shared archive is").
					WithHint("set %s, for example postgres://OWNER:PASSWORD@HOST/DATABASE", envPostgres)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			a, err := postgres.Open(ctx, url, "-") // of no cluster: only the tables are looked at
			if err != nil {
				return err
			}
			defer a.Close()
			fmt.Fprintf(cmd.OutOrStdout(), "the tables in %s are up to date\n", a)
			return nil
		},
	})
	return c
}
