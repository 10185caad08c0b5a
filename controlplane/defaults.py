"""Defaults that the command line needs without the cost of importing the settings."""

from pathlib import Path

DATA_DIR = Path("~/.local/share/tritonctl").expanduser()
"""The folder of local state unless the setting ``data_dir`` names another one."""
CONFIG_VARIABLE = "CONTROLPLANE_CONFIG"
"""Environment variable that names the configuration file."""
