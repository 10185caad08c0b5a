"""Store faults, injected by the proxy before the real S3 server."""

import shutil
import time
from collections.abc import Callable

from tests.faults.cases import Case, Trial
from tests.faults.clients import RefusedError
from tests.faults.stage import MOVING
from tests.support.faultproxy import Action, Fault, FaultProxy

_STORE = r"^readyz store|store-unavailable|store-access|commit-outcome-unknown|event \d+ Store"


def _proxy(trial: Trial) -> FaultProxy:
    assert trial.stage.proxy is not None
    return trial.stage.proxy


def passing(*faults: Callable[[], Fault]) -> Callable[[Trial], None]:
    """Return faults of single requests that must stay unnoticed: publish and deploy succeed at the first attempt."""

    def run(trial: Trial) -> None:
        for make in faults:
            _proxy(trial).inject(make())
        if not (trial.stage.publishes() and trial.stage.deploys_alone()):
            trial.problems.append(f"a failed request was not retried successfully: {trial.stage.last_failure}")
        trial.heals(trial.stage.answers)

    return run


def lasting(make: Callable[[], Fault], seconds: float) -> Callable[[Trial], None]:
    """Make the store unhealthy for some seconds while clients work; the system recovers automatically."""

    def run(trial: Trial) -> None:
        with _proxy(trial).lasting(make()):
            end = time.monotonic() + seconds
            trial.stage.publishes()
            trial.sightings.wait(60)
            while time.monotonic() < end:
                if not trial.stage.answers():
                    trial.problems.append("inference needs the store")
                time.sleep(0.1)
        trial.lifted()
        trial.heals(lambda: trial.stage.publishes() and trial.stage.deploys())

    return run


def wrong_bytes(trial: Trial) -> None:
    """Change one bit in every read of a blob while a version that is not in the cache is deployed."""
    stage = trial.stage
    cache = stage.plane.folder / "cache" / "sha256"
    with stage.deployer_off():
        published = stage.work.publish(MOVING)
        newest = published.version
        # The manifest, and sometimes only the file: the loop reads the former, the fetch reads the latter.
        of = stage.rng.choice(("blobs/", published.sha256))
        refused = False
        with _proxy(trial).lasting(Fault(Action.FLIP, "GET", contains=of)):
            for folder in cache.iterdir():
                shutil.rmtree(folder)
            try:
                stage.work.deploy(MOVING, newest)
            except RefusedError as error:  # the request itself reads the manifest
                if error.code != "digest-mismatch":
                    raise
                refused = True
            trial.sightings.wait(60)
        trial.lifted()
        trial.heals(lambda: not refused or stage.deploys(newest))
        trial.heals(lambda: stage.asker.ask(MOVING) == newest)


def store_cases(long: bool) -> list[Case]:
    """Return all store cases; lasting faults last longer in the long version."""
    seconds = 12.0 if long else 3.0
    answer = Action.ANSWER
    single: dict[str, list[Callable[[], Fault]]] = {
        "500, twice": [lambda: Fault(answer, times=2, status=500, code="InternalError")],
        "503 SlowDown, twice": [lambda: Fault(answer, times=2)],
        "reset in a body, up and down": [
            lambda: Fault(Action.RESET_REQUEST, "PUT", times=2),
            lambda: Fault(Action.CUT_RESPONSE, "GET", times=2),
        ],
        "a commit's answer lost": [
            lambda: Fault(Action.LOSE_ANSWER, "PUT", contains="/models/"),
            lambda: Fault(Action.LOSE_ANSWER, "PUT", contains="/deployments/"),
        ],
        "all answers of a commit lost": [
            lambda: Fault(Action.LOSE_ANSWER, "PUT", contains="/models/", times=6),
            lambda: Fault(Action.LOSE_ANSWER, "PUT", contains="/deployments/", times=6),
        ],
        "a key's claim's answer lost": [lambda: Fault(Action.LOSE_ANSWER, "PUT", contains="/idempotency/")],
        "a request stalls": [lambda: Fault(Action.STALL, "PUT"), lambda: Fault(Action.STALL, "GET")],
        "a revision changed on its way": [lambda: Fault(Action.FLIP, "GET", contains="/revisions/", times=2)],
    }
    every = [make for name, makes in single.items() if name != "all answers of a commit lost" for make in makes]
    return [
        Case("S3: each single fault at once", passing(*every), long=3),
        *(Case(f"S3: {name}", passing(*makes), quick=0, long=3) for name, makes in single.items()),
        Case(
            "S3: 500, all the time",
            lasting(lambda: Fault(answer, status=500, code="InternalError"), seconds),
            _STORE,
            quick=0,
            long=2,
        ),
        Case("S3: 503 SlowDown, all the time", lasting(lambda: Fault(answer), seconds), _STORE, long=2),
        Case("S3: all requests stall", lasting(lambda: Fault(Action.STALL), seconds), _STORE, quick=0, long=2),
        Case("S3: blobs changed on their way", wrong_bytes, "does not match its digest|has SHA-256", long=4),
        Case("S3: bucket away", lasting(lambda: Fault(Action.REFUSE), 60.0 if long else 4.0), _STORE, long=1),
    ]
