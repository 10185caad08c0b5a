"""Reading of untrusted ZIP archives without unpacking them.

torch and skops both save ZIP files. Inspection needs only the archive's directory and small members, so nothing from an
archive is written to disk, and no member is read beyond a limit. The sizes that an archive declares are not trusted.
"""

import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from controlplane.errors import InvalidArtifactError

MAX_MEMBERS = 500_000
MAX_UNPACKED_BYTES = 256 * 1024**3
MAX_RATIO = 200
"""Limit on unpacked bytes per packed byte. Weights hardly compress, and torch stores them uncompressed; zeros shrink a
thousandfold."""
MAX_MEMBER_READ_BYTES = 256 * 1024**2

_BROKEN = (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError, zlib.error)


@dataclass(frozen=True, slots=True)
class Listing:
    """The directory of an archive.

    Attributes:
        path: The archive.
        prefix: The single folder that contains all members (torch writes one), with its ``/``; empty if there is none.
        sizes: Unpacked size in bytes of each member, by its name without the prefix.
    """

    path: Path
    prefix: str
    sizes: dict[str, int]

    def under(self, folder: str) -> list[str]:
        """Return the names of the members in a folder."""
        return [name for name in self.sizes if name.startswith(folder)]

    def read(self, name: str) -> bytes:
        """Return the content of one small member.

        Raises:
            InvalidArtifactError: The member is missing, damaged, or larger than `MAX_MEMBER_READ_BYTES`.
        """
        if self.sizes.get(name, 0) > MAX_MEMBER_READ_BYTES:
            raise InvalidArtifactError(
                f"{self.path.name}: its member {name!r} claims {self.sizes[name]} bytes; the limit is "
                f"{MAX_MEMBER_READ_BYTES}"
            )
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.prefix + name) as member:
                data = member.read(MAX_MEMBER_READ_BYTES + 1)
        except (*_BROKEN, KeyError) as error:
            raise InvalidArtifactError(f"{self.path.name}: its member {name!r} is damaged or missing") from error
        if len(data) > MAX_MEMBER_READ_BYTES:
            raise InvalidArtifactError(f"{self.path.name}: its member {name!r} is larger than it claims")
        return data


def doubled(names: Iterable[str]) -> str | None:
    """Return a name that an archive contains twice, ignoring case, or None.

    Readers differ in which of two members with the same name they use, and torch's reader compares names without regard
    to case (`mz_zip_reader_locate_file`). The inspected member could then differ from the loaded one.
    """
    seen: set[str] = set()
    for name in names:
        if (folded := name.lower()) in seen:
            return name
        seen.add(folded)
    return None


def list_archive(path: Path) -> Listing:
    """Read an archive's directory.

    Raises:
        InvalidArtifactError: The archive is truncated or damaged, has members that point outside its folder or share a
            name, or is a possible archive bomb.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except _BROKEN as error:
        raise InvalidArtifactError(f"{path.name} is a truncated or damaged ZIP archive ({error})") from error
    # The directory is located from the end of the file. In a truncated file, the end may belong to a nested archive
    # (torch.export puts one archive into another), which lists without errors but is the wrong one.
    if not infos or min(info.header_offset for info in infos) != 0:
        raise InvalidArtifactError(f"{path.name} is a truncated ZIP archive: its directory belongs to another one")
    if len(infos) > MAX_MEMBERS:
        raise InvalidArtifactError(f"{path.name} has {len(infos)} members; the limit is {MAX_MEMBERS}")
    size = path.stat().st_size
    unpacked = sum(info.file_size for info in infos)
    if unpacked > MAX_UNPACKED_BYTES or unpacked > max(size, 1024) * MAX_RATIO:
        raise InvalidArtifactError(
            f"{path.name} has {size} bytes and claims to unpack to {unpacked}; it is rejected as a possible "
            "archive bomb"
        )
    names = [info.filename for info in infos]
    for name in names:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or "\\" in name or "\0" in name or ".." in parts:
            raise InvalidArtifactError(f"{path.name}: its member {name[:120]!r} points outside the archive's folder")
    if (twice := doubled(names)) is not None:
        raise InvalidArtifactError(
            f"{path.name} has the member {twice[:120]!r} twice (torch ignores case), so readers could see "
            "different contents; write the archive again"
        )
    firsts = {name.split("/", 1)[0] for name in names if "/" in name}
    single = len(firsts) == 1 and all("/" in name for name in names)
    prefix = f"{firsts.pop()}/" if single else ""
    return Listing(path, prefix, {info.filename.removeprefix(prefix): info.file_size for info in infos})
