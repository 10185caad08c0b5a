"""Keys that an instance does not know: it looks for them, and not too often."""

import asyncio

import pytest

from controlplane.domain.access import Keyring, Scope
from controlplane.errors import UnauthenticatedError
from controlplane.registry.keys import ApiKeys, KeyRequest, new_token
from controlplane.services.keys import Keys
from controlplane.settings import AuthSettings
from controlplane.storage.memory import MemoryStore


class Counted(ApiKeys):
    """Counts how often the bucket is looked at."""

    looks = 0

    def read(self, *, max_age_seconds: float = 0.0) -> tuple[int, Keyring]:
        self.looks += 1
        return super().read(max_age_seconds=max_age_seconds)


async def test_key_created_elsewhere_works_right_after_a_refresh() -> None:
    store = MemoryStore()
    elsewhere, here = ApiKeys(store), Counted(store)
    _, root = elsewhere.create(KeyRequest("root", (Scope.ADMIN,)), actor="ada")
    keys = Keys(here, AuthSettings(refresh_seconds=60), "127.0.0.1")
    await keys.open()
    assert (await keys.authenticate(root)).name == "root"
    for name in ("a", "b", "c"):
        _, token = elsewhere.create(KeyRequest(name, (Scope.READ,)), actor="ada")
        assert (await keys.authenticate(token)).name == name
    looks = here.looks

    async def guess() -> None:
        with pytest.raises(UnauthenticatedError, match="unknown API key"):
            await keys.authenticate(new_token()[1])

    await asyncio.gather(*(guess() for _ in range(50)))
    assert here.looks <= looks + 2, "all guesses of a second share one look"
    assert (await keys.authenticate(root)).name == "root"
    await keys.close()
