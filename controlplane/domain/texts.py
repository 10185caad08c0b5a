"""Texts that people write: limits of their length and characters."""

import unicodedata
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints


def _one_line(text: str) -> str:
    """Refuse control characters, which would be interpreted in a log or a terminal."""
    if any(unicodedata.category(character) in {"Cc", "Zl", "Zp"} for character in text):
        raise ValueError("must be one line without control characters")
    return text


OneLine = AfterValidator(_one_line)
Label = Annotated[str, StringConstraints(max_length=1024), OneLine]
LabelName = Annotated[str, StringConstraints(min_length=1, max_length=128), OneLine]
Labels = Annotated[dict[LabelName, Label], Field(max_length=64)]
Description = Annotated[str, StringConstraints(max_length=10_000)]
Reason = Annotated[str, StringConstraints(max_length=1024), OneLine]
