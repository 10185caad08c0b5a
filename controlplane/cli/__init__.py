"""The command line, `tritonctl`."""
