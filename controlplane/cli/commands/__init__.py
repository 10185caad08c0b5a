"""The commands, one module per group; `controlplane.cli.main` registers them."""
