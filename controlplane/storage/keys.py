"""Valid object keys, and their order."""

import re

from controlplane.errors import InvalidInputError

# The folder store keeps incomplete files here. In every store no key may begin with this name, so that a registry can
# be copied from one kind of store to another.
INCOMPLETE_FOLDER = ".incomplete"

# S3 allows 1,024 bytes including the store's prefix; a file system allows 255 for one part of a path.
MAX_KEY_BYTES = 900
MAX_PART_BYTES = 255
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\]")


def check_key(key: str) -> str:
    """Return ``key`` if every store can hold it.

    Raises:
        InvalidInputError: The key is empty or too long, has an empty, ``.`` or ``..`` part, a control character or a
            backslash, or begins with the reserved folder.
    """
    if not key:
        raise InvalidInputError("An object key must not be empty.")
    parts = key.split("/")
    for part in parts:
        if part in {"", ".", ".."}:
            raise InvalidInputError(f"Object key {key!r} has an empty, '.' or '..' part.", key=key)
    _check_text(key)
    if parts[0] == INCOMPLETE_FOLDER:
        raise InvalidInputError(f"Object key {key!r} begins with {INCOMPLETE_FOLDER!r}, which is reserved.", key=key)
    if len(key.encode()) > MAX_KEY_BYTES or any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        raise InvalidInputError(
            f"Object key {key[:60]!r}… is longer than {MAX_KEY_BYTES} bytes, or one of its parts is longer than "
            f"{MAX_PART_BYTES}.",
            key=key,
        )
    return key


def check_prefix(prefix: str) -> str:
    """Return ``prefix`` if keys may start with it. It may be empty, and need not end in ``/``.

    Raises:
        InvalidInputError: No valid key starts with it.
    """
    folder, _, _ = prefix.rpartition("/")
    if folder:
        check_key(folder)
    elif prefix.startswith("/"):
        raise InvalidInputError(f"Prefix {prefix!r} begins with '/'.", prefix=prefix)
    _check_text(prefix)
    return prefix


def check_folder(prefix: str) -> str:
    """Return ``prefix`` if it names a folder: empty, or a valid prefix that ends in ``/``.

    Raises:
        InvalidInputError: It does not name a folder.
    """
    if prefix and not prefix.endswith("/"):
        raise InvalidInputError(f"Folder prefix {prefix!r} must end in '/'.", prefix=prefix)
    return check_prefix(prefix)


def check_range(start: int, length: int | None) -> None:
    """Check that a range is valid.

    Raises:
        InvalidInputError: The start or the length is negative.
    """
    if start < 0 or (length is not None and length < 0):
        raise InvalidInputError(f"A range with start {start} and length {length} is not valid.")


def order(key: str) -> bytes:
    """Return the sort key of S3's listing order: UTF-8 bytes."""
    return key.encode("utf-8", "surrogatepass")


def _check_text(text: str) -> None:
    if _FORBIDDEN.search(text):
        raise InvalidInputError(f"Object key {text!r} has a control character or a backslash.", key=text)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"Object key {text!r} is not valid Unicode.", key=text) from error
