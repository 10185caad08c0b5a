"""Environments of their own beside this one, for packages that are too large for every run of the tests."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]


def install_beside(folder: Path, *requirements: str) -> Path:
    """Make an environment with more packages that also has this environment's; return its Python.

    Packages that are here already are not installed again, so the constraints hold for both. A failed installation
    skips the test, and fails it in CI.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    (Path(site) / "beside.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    done = subprocess.run(
        [*(python, "-m", "pip", "install", "--quiet", "-c", _ROOT / "constraints.txt"), *requirements],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        reason = f"pip cannot install {' '.join(requirements)}: {done.stderr.strip()[-300:]}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return python
