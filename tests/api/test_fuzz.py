"""The API against its own OpenAPI document: whatever is sent, no server error, and answers of the promised form."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import content_type_conformance, not_a_server_error, response_schema_conformance

from tests.support.api import Api, onnx_scale

# A stream of events has no end, and a wait is as long as the client asks.
_LEFT_OUT = {"listEvents", "followOperation", "waitForDeployment", "getOperation", "loadDeployment", "takeLease"}
_CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def seeded(bare: Api) -> Api:
    bare.publish("resnet", onnx_scale(2), aliases=["champion"])  # the name that the document's examples use
    return bare


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_request_makes_the_server_fail(seeded: Api, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{seeded.url}/openapi.json")
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()
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
            case.call_and_validate(checks=_CHECKS)

        try:
            attempt()
        except Unsatisfiable:
            continue  # nothing about this operation can be wrong
        tried += 1
    assert tried >= 20
