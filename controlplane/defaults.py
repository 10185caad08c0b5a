"""Defaults that the command line needs without the cost of importing the settings."""

from pathlib import Path

DATA_DIR = Path("~/.local/share/tritonctl").expanduser()
"""The folder of local state unless the setting ``data_dir`` names another one."""
