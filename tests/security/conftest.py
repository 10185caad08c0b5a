"""Commands with a data folder of their own."""

from tests.cli.conftest import fresh

__all__ = ["fresh"]
