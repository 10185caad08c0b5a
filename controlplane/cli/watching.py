"""`--watch`: a command's output again and again, on one screen or as a stream."""

import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterator

from controlplane.client.errors import ClientError, NotRunningError, WaitTimeoutError

_CLEAR_LINE, _CLEAR_BELOW, _HOME = "\x1b[K", "\x1b[J", "\x1b[H"


class _Capture(io.StringIO):
    """Collects the output of one run; for a screen it has the properties of the terminal."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def watch(show: Callable[[], None], interval: float, *, screen: bool) -> None:
    """Show a command's output until Ctrl-C.

    Args:
        show: Prints the output once.
        interval: Seconds between two looks.
        screen: Whether each output replaces the previous one; otherwise an output is printed when it differs from the
            previous one.

    Raises:
        ControlPlaneError: The first look failed. Later a control plane that does not answer is reported on the screen.
    """
    previous: str | None = None
    with _alternate_screen() if screen else contextlib.nullcontext():
        while True:
            taken, trouble = _Capture(terminal=screen), ""
            try:
                with contextlib.redirect_stdout(taken), contextlib.redirect_stderr(taken if screen else sys.stderr):
                    show()
            except (NotRunningError, WaitTimeoutError, ClientError) as error:
                if previous is None:
                    raise
                trouble = f"last known state: {error.message}"
            text = previous if trouble and previous is not None else taken.getvalue()
            if screen:
                _draw(f"{trouble}\n{text}" if trouble else text)
            elif text != previous:
                sys.stdout.write(text)
                sys.stdout.flush()
            previous = text
            time.sleep(interval)


def _draw(text: str) -> None:
    import shutil

    height = shutil.get_terminal_size().lines - 1
    lines = text.splitlines()[:height]
    sys.stdout.write(_HOME + "".join(f"{line}{_CLEAR_LINE}\n" for line in lines) + _CLEAR_BELOW)
    sys.stdout.flush()


@contextlib.contextmanager
def _alternate_screen() -> Iterator[None]:
    sys.stdout.write("\x1b[?1049h\x1b[?25l")
    try:
        yield
    finally:
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()
