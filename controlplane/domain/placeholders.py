"""Recognizes placeholder files: files that stand in for a model that was not downloaded. Pure."""

HEAD_BYTES = 512
"""Number of leading bytes of a file that are needed."""

_LFS = b"version https://git-lfs.github.com/spec/"
_PAGES = ((b"<!doctype html", "an HTML page"), (b"<html", "an HTML page"), (b"<?xml", "an XML document"))


def lfs_pointer(name: str, head: bytes) -> str | None:
    """Return the error and the remedy for a Git LFS pointer; None if the file is not one.

    Args:
        name: The file's name, for the message.
        head: Its first `HEAD_BYTES` bytes.
    """
    if not head.startswith(_LFS):
        return None
    sizes = [line[5:] for line in head.decode("ascii", "replace").splitlines() if line.startswith("size ")]
    size = f" ({sizes[0]} bytes)" if sizes and sizes[0].isdigit() else ""
    return f"{name} is a Git LFS pointer, not the file itself{size}: run `git lfs pull` in its repository"


def web_page(name: str, head: bytes) -> str | None:
    """Return the error and the remedy for a web page in place of a model; None if the file is not one."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:16].lower()
    for sign, what in _PAGES:
        if start.startswith(sign):
            return (
                f"{name} is {what}, not a model; the download probably returned an error or a login page. Check "
                "its first lines, then download it again"
            )
    return None
