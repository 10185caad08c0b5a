"""Servers join and leave a running control loop: real Tritons, whose models keep answering or come back."""

from pathlib import Path

import pytest

from controlplane.registry.registry import Registry
from tests.reconciler.conftest import answer
from tests.reconciler.test_fleet import MIB, Fleet, fleet, managed
from tests.support.model_processes import processes_of

pytestmark = pytest.mark.triton


def loaded(here: Fleet, name: str) -> set[str]:
    """The models that a server has, as last observed."""
    (server,) = (one for one in here.reconciler.servers() if one.name == name)
    return {one.model for one in server.models if one.state == "READY"}


def routed(here: Fleet, model: str) -> set[str]:
    """The servers that requests for a model are sent to."""
    route = here.reconciler.routes().get(model)
    return set(route.servers) if route else set()


def unplaced(here: Fleet, model: str) -> str:
    why = here.reconciler.why(model)
    return why.placement.unplaced if why and why.placement else ""


async def test_server_that_joins_gets_models_and_one_that_leaves_loses_them(registry: Registry, tmp_path: Path) -> None:
    async with fleet(registry, tmp_path, "one", "two", joined=("one",)) as here:
        assert (await here.ready("alone", 2)).servers[0].server == "one"
        await here.ready("pair", 3, min_replicas=1, max_replicas=2)
        processes = processes_of(here.servers["one"], "alone", 1)
        here.put("both", 4, min_replicas=2)
        await here.until(lambda: "only 1 can run it" in unplaced(here, "both"))

        two = managed("two", here.servers["two"], here.clients["two"], 1000 * MIB)
        here.reconciler.server_joined(two)
        await here.until(lambda: sorted(here.assignments("both")) == ["one", "two"])
        await here.until(lambda: (status := here.reconciler.status("both")) is not None and len(status.servers) == 2)
        await here.until(lambda: routed(here, "both") == {"one", "two"})
        assert (await answer(here.clients["two"], "both"))[0] == 4.0
        assert here.assignments("alone") == ["one"], "a server that joins moves nothing"
        assert processes_of(here.servers["one"], "alone", 1) == processes, "a server that joins reloads nothing"

        one = next(server for server in here.managed if server.name == "one")
        here.reconciler.server_left(one)
        for model, scale in (("alone", 2.0), ("pair", 3.0), ("both", 4.0)):
            await here.until(lambda model=model: here.assignments(model) == ["two"])
            await here.until(
                lambda model=model: (
                    model in here.reconciler.routes() and here.reconciler.routes()[model].servers == ("two",)
                )
            )
            assert (await answer(here.clients["two"], model))[0] == scale
        assert [server.name for server in here.reconciler.servers()] == ["two"]
        assert here.reconciler.missed == {}

        here.reconciler.server_joined(one)
        await here.until(lambda: sorted(here.assignments("both")) == ["one", "two"])
        await here.until(lambda: routed(here, "both") == {"one", "two"})
        assert here.assignments("alone") == ["two"]
        await here.until(lambda: "alone" not in loaded(here, "one"))


async def test_last_server_leaves_and_another_takes_its_models(registry: Registry, tmp_path: Path) -> None:
    async with fleet(registry, tmp_path, "one", "two", joined=("one",)) as here:
        await here.ready("net", 2)
        (one,) = here.managed
        here.reconciler.server_left(one)
        await here.until(lambda: here.reconciler.servers() == ())
        await here.until(lambda: routed(here, "net") == set())
        here.reconciler.server_joined(managed("two", here.servers["two"], here.clients["two"], 1000 * MIB))
        await here.until(lambda: routed(here, "net") == {"two"})
        assert (await answer(here.clients["two"], "net"))[0] == 2.0
