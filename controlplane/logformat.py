"""Log formats that prevent forged records: a message is one record, whatever it contains."""

import json
import logging
import re
from datetime import UTC, datetime

from controlplane import tracing

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_CONTINUED = "\n    | "


def printable(text: str) -> str:
    """Return the text with escaped control characters and marked continuation lines, which cannot pass for records."""
    escaped = _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
    return escaped.replace("\n", _CONTINUED)


class LineFormatter(logging.Formatter):
    """A formatter for messages that contain text from clients, models and other programs."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the record's line, without its traceback."""
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:  # noqa: N802 - logging's name
        """Return the traceback; the text of the exception may come from other programs, too."""
        return "    | " + printable(super().formatException(ei))  # type: ignore[arg-type]


class JsonFormatter(logging.Formatter):
    """A formatter that writes one JSON object a line: time, level, logger, message, and the trace if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        at = datetime.fromtimestamp(record.created, UTC)
        fields = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if parent := tracing.current():
            _, fields["trace_id"], fields["span_id"], _ = parent.split("-")
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)
