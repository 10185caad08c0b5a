"""Defaults that the command line needs before it can afford to import the settings."""

from pathlib import Path

DATA_DIR = Path("~/.local/share/tritonctl").expanduser()
"""Where local state lives unless the setting ``data_dir`` names another folder."""
