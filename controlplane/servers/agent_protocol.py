"""The messages between a control plane and an agent, version 1.

Every request can be repeated without harm: it names content, not a change. A field that an older agent does not know is
ignored, so a field whose absence would change what happens needs a new version of the protocol.
"""

import base64
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter

from controlplane.domain.manifest import Manifest
from controlplane.domain.names import (
    CANDIDATE_SUFFIX,
    TUNING_SUFFIX,
    VERSION_MAX,
    validate_model_name,
)
from controlplane.gpu.base import DeviceReading

PROTOCOLS = (1,)
"""The versions of the protocol that this release speaks, the oldest first."""

MESSAGE_BYTES_MAX = 256 * 1024 * 1024
"""The largest request: a manifest, a configuration and the data of a warm-up request."""

DEVICES: TypeAdapter[tuple[DeviceReading, ...]] = TypeAdapter(tuple[DeviceReading, ...])


def _triton_name(name: str) -> str:
    validate_model_name(name.removesuffix(CANDIDATE_SUFFIX).removesuffix(TUNING_SUFFIX))
    return name


TritonName = Annotated[str, AfterValidator(_triton_name)]
Version = Annotated[int, Field(ge=1, le=VERSION_MAX)]
WarmupFiles = dict[Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")], str]
"""Base64 by name; the name is the beginning of the content's SHA-256."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


class Protocols(_Message):
    """What an agent answers to anyone: the versions that it speaks."""

    protocols: tuple[int, ...]
    release: str = ""


class Waiting(_Message):
    """A request for work that may take longer than one answer can wait.

    Attributes:
        wait_seconds: How long the agent waits for the end of the work before it answers that the work goes on. The same
            request again waits further.
    """

    wait_seconds: float = Field(default=10.0, ge=0, le=60)


class Install(Waiting):
    """See `ServerRepository.install`."""

    name: TritonName
    version: Version
    manifest: Manifest
    config: dict[str, Any] | None = None
    warmup: WarmupFiles = Field(default_factory=dict)


class MakeReady(Waiting):
    """See `ServerRepository.make_ready`; without ``warmup`` the agent answers if it needs it."""

    name: TritonName
    versions: dict[Version, Manifest]
    shared: Manifest | None = None
    config: dict[str, Any] | None = None
    warmup: WarmupFiles | None = None


class Compare(_Message):
    """See `ServerRepository.differences`."""

    name: TritonName
    version: Version
    manifest: Manifest


class Renew(_Message):
    """See `ServerRepository.renew`."""

    name: TritonName
    versions: tuple[Version, ...]


class Remove(_Message):
    """Remove a version, or the model with everything of it."""

    name: TritonName
    version: Version | None = None


class Lock(_Message):
    """Take or keep a lock for some seconds; 0 seconds release it.

    Attributes:
        name: The lock.
        owner: A token that only its holder has.
        seconds: When the lock becomes free unless the request is repeated.
    """

    name: Annotated[str, Field(pattern=r"^[a-z-]{1,32}$")]
    owner: Annotated[str, Field(min_length=16, max_length=64)]
    seconds: float = Field(ge=0, le=300)


class Result(_Message):
    """The answer to work.

    Attributes:
        done: Whether the work has ended; if not, send the same request again.
        needs_warmup: Whether the work ended because the files of the warm-up request are missing.
        seconds: Seconds spent, by stage.
        texts: Repairs or differences.
        staged: Whether the version is staged.
        removed: Whether it existed.
        granted: Whether the lock is held by the owner in the request.
    """

    done: bool = True
    needs_warmup: bool = False
    seconds: dict[str, float] = Field(default_factory=dict)
    texts: tuple[str, ...] = ()
    staged: bool = True
    removed: bool = False
    granted: bool = False


class Contents(_Message):
    """What lies in the repository, and the space on its disk."""

    name: str
    root: str
    staged: dict[str, tuple[int, ...]]
    free_bytes: int | None = None
    total_bytes: int | None = None


class Problem(BaseModel):
    """The part of an error response that the control plane reads."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    code: str = ""
    detail: str = ""
    details: dict[str, Any] = Field(default_factory=dict)


def devices_document(devices: tuple[DeviceReading, ...]) -> list[dict[str, Any]]:
    """Return device readings as JSON."""
    return [asdict(device) for device in devices]


def encode_files(files: "dict[str, bytes] | Any") -> dict[str, str]:
    """Return files as text."""
    return {name: base64.b64encode(content).decode() for name, content in files.items()}


def decode_files(files: dict[str, str]) -> dict[str, bytes]:
    """Return files from text (ValueError)."""
    return {name: base64.b64decode(content, validate=True) for name, content in files.items()}
