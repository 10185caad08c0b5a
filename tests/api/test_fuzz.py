"""The API against its own OpenAPI document: whatever is sent, no server error, and answers of the promised form."""

from dataclasses import dataclass
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import content_type_conformance, not_a_server_error, response_schema_conformance

from tests.support.api import Api, onnx_scale

# A stream of events has no end, and a wait is as long as the client asks.
_LEFT_OUT = {"listEvents", "followOperation", "waitForDeployment", "getOperation", "loadDeployment", "takeHold"}
_CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def seeded(bare: Api) -> Api:
    bare.publish("resnet", onnx_scale(2), aliases=["champion"])  # the name that the document's examples use
    # With a key from the start: a request that happens to make the first one would shut the door on all that follow.
    made = bare.ok(bare.http.post("/v1/keys", json={"name": "fuzz", "scopes": ["admin"]}), 201)
    bare.http.headers["Authorization"] = f"Bearer {made['secret']}"
    return bare


@pytest.mark.long
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_request_causes_a_server_error(seeded: Api, mode: GenerationMode) -> None:
    document = seeded.ok(seeded.http.get("/openapi.json"))
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=seeded.url)
    tried, shown = 0, {"Authorization": seeded.http.headers["Authorization"]}
    for result in schema.get_all_operations():
        operation: Any = result.ok()  # type: ignore[union-attr]
        if operation.definition.raw["operationId"] in _LEFT_OUT:
            continue
        try:
            strategy = operation.as_strategy(mode)
        except schemathesis.errors.InvalidSchema:
            continue

        @settings(
            max_examples=10,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=strategy)
        def attempt(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=_CHECKS, headers=shown, timeout=60)

        try:
            attempt()
        except Unsatisfiable:
            continue  # nothing about this operation can be wrong
        tried += 1
    assert tried >= 20


@dataclass(frozen=True)
class Link:
    """One answer's link to another operation."""

    source: str
    status: int
    target: str
    parameters: tuple[tuple[str, str], ...]

    def values(self, case: schemathesis.Case, body: Any) -> dict[str, Any]:
        """What the target's parameters are, by the link's expressions."""
        found = {}
        for name, expression in self.parameters:
            where, _, pointer = expression.partition("#/" if "#" in expression else ".path.")
            value: Any = body if where == "$response.body" else case.path_parameters
            for part in pointer.split("/"):
                value = value[int(part) if isinstance(value, list) else part]
            found[name] = value
        return found


def links_of(document: dict[str, Any]) -> list[Link]:
    """All links of an OpenAPI document, but those to answers that have no end."""
    return [
        Link(operation["operationId"], int(status), link["operationId"], tuple(link["parameters"].items()))
        for path in document["paths"].values()
        for operation in path.values()
        for status, answer in operation["responses"].items()
        for link in answer.get("links", {}).values()
        if operation["operationId"] not in _LEFT_OUT
    ]


@pytest.mark.long
def test_no_linked_request_sequence_causes_a_server_error(seeded: Api) -> None:
    """What one answer gives is what the next request uses; the rest of both is made up."""
    links = links_of(seeded.ok(seeded.http.get("/openapi.json")))
    document = seeded.ok(seeded.http.get("/openapi.json"))
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=seeded.url)
    made_up = {
        operation.definition.raw["operationId"]: operation.as_strategy(GenerationMode.POSITIVE)
        for operation in (result.ok() for result in schema.get_all_operations())  # type: ignore[union-attr]
        if operation.definition.raw["operationId"] in {name for link in links for name in (link.source, link.target)}
    }
    followed: set[tuple[str, str]] = set()
    shown = {"Authorization": seeded.http.headers["Authorization"]}

    def follow(link: Link, known: str) -> None:
        # What is drawn must not depend on what the server says: its state outlives an example.
        @settings(
            max_examples=8,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(first=made_up[link.source], second=made_up[link.target], one_that_is_there=st.booleans())
        def attempt(first: schemathesis.Case, second: schemathesis.Case, one_that_is_there: bool) -> None:
            if one_that_is_there and "model" in first.path_parameters:
                first.path_parameters["model"] = known
            response = first.call_and_validate(checks=_CHECKS, headers=shown)
            if response.status_code == link.status:
                second.path_parameters.update(link.values(first, response.json()))
                second.call_and_validate(checks=_CHECKS, headers=shown)
                followed.add((link.source, link.target))

        attempt()

    for number, link in enumerate(links):
        # One of its own for each link: what is made up for another may have deleted it.
        seeded.publish(f"linked{number}", onnx_scale(2), aliases=["champion"])
        follow(link, f"linked{number}")
    assert {source for source, _ in followed} >= {"putModel", "createUpload", "collectGarbage"}, followed
