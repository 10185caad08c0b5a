"""Names and references, validated once, at the edge.

A model name becomes a folder in Triton's model repository, a path segment of Triton's HTTP API, a key in the bucket and
a Prometheus label. So it is limited to what all of them take literally: no separator, no leading dot, nothing that
would make `name:7` or `name@champion` ambiguous, and no ``~``, which the control plane reserves for its own names.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Self

from controlplane.errors import InvalidNameError, InvalidReferenceError

MODEL_NAME_MAX = 128
ALIAS_NAME_MAX = 64
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_ALIAS = re.compile(r"[a-z][a-z0-9_-]*")
_COMPARED = 500
"""Maximum number of names that are compared for a suggestion."""
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
VERSION_MAX = 999_999_999
"""The largest version number, which has as many digits as a reference allows."""
LATEST = "latest"

CANDIDATE_SUFFIX = "~candidate"
"""Suffix of the Triton name under which a version is proved before it takes the model's own name."""

TUNING_SUFFIX = "~tune"
"""Suffix of the Triton name of the copy that settings are tried on; the reconciler ignores it."""


def validate_model_name(name: str) -> str:
    """Return the name if it is a valid model name.

    Raises:
        InvalidNameError: It is empty, too long, or has characters outside ``A-Z a-z 0-9 _ . -``.
    """
    if not name:
        raise InvalidNameError("a model name must not be empty")
    if len(name) > MODEL_NAME_MAX:
        raise InvalidNameError(
            f"model name {name[:40]!r}… has {len(name)} characters; the limit is {MODEL_NAME_MAX}", name=name
        )
    if not _MODEL.fullmatch(name):
        raise InvalidNameError(
            f"{name!r} is not a valid model name; use letters, digits, '_', '-' and '.', starting with a letter or "
            "digit",
            name=name,
        )
    return name


def validate_alias(alias: str) -> str:
    """Return the alias if it is valid.

    Raises:
        InvalidNameError: It has invalid characters, is too long, or is the reserved word ``latest``.
    """
    if alias == LATEST:
        raise InvalidNameError(
            "'latest' is not an alias that can be set; a model name without a version already means the newest version",
            alias=alias,
        )
    if len(alias) > ALIAS_NAME_MAX or not _ALIAS.fullmatch(alias):
        raise InvalidNameError(
            f"{alias[:80]!r} is not a valid alias; use lower-case letters, digits, '_' and '-', starting with a "
            f"letter, at most {ALIAS_NAME_MAX} characters",
            alias=alias,
        )
    return alias


def validate_file_path(path: str) -> str:
    """Return a path inside an artifact if it is valid and in normal form.

    Raises:
        InvalidNameError: It is absolute, contains ``..``, is hidden, has a backslash or a control character, or is not
            in normal form.
    """
    pure = PurePosixPath(path)
    bad = (
        not path
        or not pure.parts  # ".", the folder itself
        or path != str(pure)
        or pure.is_absolute()
        or "\\" in path
        or any(ord(character) < 32 or ord(character) == 127 for character in path)
        # Half of a surrogate pair: Python's representation of a byte in a file name that is not UTF-8.
        or any(0xD800 <= ord(character) <= 0xDFFF for character in path)
        or any(part in {"", ".", ".."} or part.startswith(".") for part in pure.parts)
        or len(path.encode()) > 1024
        or any(len(part.encode()) > 255 for part in pure.parts)
    )
    if bad:
        raise InvalidNameError(
            f"{path[:120]!r} is not a valid file name inside an artifact; it must be relative, without '..', "
            "hidden parts, backslashes or control characters",
            path=path,
        )
    return path


def candidate_name(model: str) -> str:
    """Return the Triton name under which a new version of ``model`` is proved."""
    return model + CANDIDATE_SUFFIX


def tuning_name(model: str) -> str:
    """Return the Triton name of the copy that settings of ``model`` are tried on."""
    return model + TUNING_SUFFIX


@dataclass(frozen=True, slots=True)
class Reference:
    """``name`` (the newest version; to deploy, the newest that Triton can serve), ``name:7`` or ``name@alias``.

    Attributes:
        model: The model name.
        version: The version number, if given.
        alias: The alias, if given.
    """

    model: str
    version: int | None = None
    alias: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a reference.

        Raises:
            InvalidReferenceError: The text has none of the three forms.
            InvalidNameError: The model name or the alias is not valid.
        """
        if "@" in text:
            model, _, alias = text.partition("@")
            if ":" in model or ":" in alias:
                raise InvalidReferenceError(
                    f"{text!r} names both a version and an alias; use name:7 or name@alias", reference=text
                )
            return cls(validate_model_name(model), alias=None if alias == LATEST else validate_alias(alias))
        if ":" in text:
            model, _, number = text.partition(":")
            if not _VERSION.fullmatch(number):
                raise InvalidReferenceError(
                    f"{text!r}: {number!r} is not a version number; use name:7, name@alias or name alone",
                    reference=text,
                )
            return cls(validate_model_name(model), version=int(number))
        return cls(validate_model_name(text))

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.model}:{self.version}"
        return f"{self.model}@{self.alias}" if self.alias else self.model


def close_names(name: str, names: Iterable[str], *, limit: int = 3) -> list[str]:
    """Return the existing names that are most similar to an unknown name, the best first.

    The comparison is slow, so among many names only those of similar length with the same beginning are compared.
    """
    alike = [other for other in names if abs(len(other) - len(name)) <= max(3, len(name) // 2)]
    for letters in range(1, len(name) + 1):
        if len(alike) <= _COMPARED:
            break
        alike = [other for other in alike if other.startswith(name[:letters])]
    return difflib.get_close_matches(name, alike[:_COMPARED], n=limit, cutoff=0.6)
