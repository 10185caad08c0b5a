"""Builds the wheel and the sdist, and reads what is in them."""

import email.message
import email.parser
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("controlplane", "converters", "tritonctl")
"""The import packages of the wheel."""
_DOCS = ".md"


@dataclass(frozen=True)
class Built:
    """The two files of a build."""

    wheel: Path
    sdist: Path

    def wheel_names(self) -> set[str]:
        """Return the paths of the files in the wheel."""
        with zipfile.ZipFile(self.wheel) as archive:
            return {one.filename for one in archive.infolist() if not one.is_dir()}

    def sdist_names(self) -> set[str]:
        """Return the paths of the files in the sdist, below its only folder."""
        with tarfile.open(self.sdist) as archive:
            return {one.name.partition("/")[2] for one in archive.getmembers() if one.isfile()}

    def metadata(self) -> email.message.Message:
        """Return the wheel's metadata."""
        return email.parser.Parser().parsestr(self._dist_info("METADATA"))

    def entry_points(self) -> str:
        """Return the wheel's entry points."""
        return self._dist_info("entry_points.txt")

    def _dist_info(self, name: str) -> str:
        with zipfile.ZipFile(self.wheel) as archive:
            (path,) = (one for one in archive.namelist() if one.endswith(f".dist-info/{name}"))
            return archive.read(path).decode()


def build(folder: Path, *, source: Path = ROOT) -> Built:
    """Build both from a source tree; this needs no network."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=source, check=True, capture_output=True
    )
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return Built(wheel, sdist)


def expected() -> set[str]:
    """Return the files of the packages that a wheel of this working tree must contain."""
    return {path for path in tracked(*PACKAGES) if not path.endswith(_DOCS)}


def tracked(*folders: str) -> list[str]:
    """Return the files in these folders, without those that git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    return [path for path in listed if (ROOT / path).exists()]
