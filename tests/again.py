"""Runs the tests that failed in the last run once more, each alone: ``python -m tests.again``.

With more workers than cores a test can miss its deadline because of the tests beside it, and among thousands of tests
with real processes one sometimes does. A test that also fails alone shows a defect. One that passes alone is reported
as unstable, by name, so that it is corrected; more than `MAX_TESTS` failures are never a coincidence.
"""

import json
import sys
from pathlib import Path

import pytest

MAX_TESTS = 5
_ROOT = Path(__file__).parent.parent


def main(root: Path = _ROOT) -> int:
    """Run the failed tests of a checkout again, and return the exit code: 0 if all of them pass now."""
    record = root / ".pytest_cache/v/cache/lastfailed"
    failed = sorted(json.loads(record.read_text())) if record.exists() else []
    if not failed or len(failed) > MAX_TESTS:
        print(f"{len(failed)} tests failed; at most {MAX_TESTS} are run again", file=sys.stderr)
        return 1
    print("\nThese tests failed beside others and are run again, alone:", *failed, sep="\n  ", flush=True)
    code = int(pytest.main(["-p", "no:cacheprovider", "-p", "no:xdist", *failed]))
    if code == 0:
        print("They pass alone, so they are unstable beside others. Correct them:", *failed, sep="\n  ")
    return code


if __name__ == "__main__":
    sys.exit(main())
