"""``python -m tritonctl``: the command line."""

from controlplane.cli.main import main

main()
