"""What clients, models and other programs write cannot pass for a record of the log."""

import io
import logging

import pytest
from pydantic import TypeAdapter, ValidationError

from controlplane.domain.texts import Label, Reason
from controlplane.logformat import LineFormatter

FORGED = "tidy up\n2026-11-30 08:00:00,000 WARNING controlplane: root revoked every key\r\x1b[2K\x85\u2028end"


@pytest.mark.parametrize("text", [FORGED, "a\nb", "a\rb", "a\x1b[31mb", "a\x00b", "a\u2028b"])
def test_free_text_is_one_line_without_control_characters(text: str) -> None:
    for kind in (Reason, Label):
        with pytest.raises(ValidationError, match="one line without control characters"):
            TypeAdapter(kind).validate_python(text)
    assert TypeAdapter(Reason).validate_python("höher, 更快") == "höher, 更快"


def test_a_message_cannot_forge_a_record() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter())
    logger = logging.getLogger("test-of-forged-lines")
    logger.propagate = False
    logger.addHandler(handler)
    try:
        logger.warning("revoked by %s", FORGED)
        logger.error("it failed: %s", "x", exc_info=ValueError(FORGED))
        logger.warning("done")
    finally:
        logger.removeHandler(handler)
    lines = stream.getvalue().splitlines()
    assert [line for line in lines if "test-of-forged-lines" in line and not line.startswith("    | ")] == [
        line for line in lines if not line.startswith("    | ")
    ]
    assert sum(not line.startswith("    | ") for line in lines) == 3
    assert "\x1b" not in stream.getvalue()
