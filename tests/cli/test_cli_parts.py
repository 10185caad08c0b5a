"""The pure parts of the CLI."""

import fcntl
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest
from rich.text import Text

from controlplane import errors
from controlplane.cli.exit_codes import ExitCode, error_code, exit_code
from controlplane.cli.output import Output, ago, size, span
from controlplane.cli.workflows.deploy import shortfall
from controlplane.cli.workflows.push import model_name
from controlplane.cli.workflows.tensors import parse_axes, parse_spec, read_tensors, save_npz, to_protocol
from controlplane.client.discovery import UpRecord
from controlplane.client.errors import ClientError, OperationFailedError
from controlplane.client.http import Client
from controlplane.client.memory import ServerExplanation, ServerMemory
from controlplane.client.models import Deployment
from controlplane.domain.signature import DataType
from controlplane.errors import InvalidInputError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ClientError("", code="not-found", status=404), ExitCode.NOT_FOUND),
        (ClientError("", code="in-use", status=409), ExitCode.CONFLICT),
        (ClientError("", code="idempotency-mismatch", status=422), ExitCode.CONFLICT),
        (ClientError("", code="conversion-failed", status=422), ExitCode.FAILED),
        (ClientError("", code="store-unavailable", status=503), ExitCode.UNREACHABLE),
        (ClientError("", code="triton-timeout", status=504), ExitCode.TIMEOUT),
        (ClientError("", code="a-code-of-tomorrow", status=404), ExitCode.NOT_FOUND),
        (ClientError("", code="internal-error", status=500), ExitCode.FAILURE),
        (OperationFailedError("", code="parity"), ExitCode.FAILED),
        (OperationFailedError("", code="invalid-artifact"), ExitCode.INVALID),
        (OperationFailedError("", code="deployment-failed"), ExitCode.FAILED),
        (errors.InvalidReferenceError(""), ExitCode.INVALID),
        (errors.DigestMismatchError(""), ExitCode.FAILURE),
    ],
)
def test_errors_map_to_documented_exit_codes(error: errors.ControlPlaneError, code: ExitCode) -> None:
    assert exit_code(error) is code


def test_local_error_codes_have_the_form_of_server_codes() -> None:
    assert error_code(errors.InvalidReferenceError("")) == "invalid-reference"
    assert error_code(ClientError("", code="in-use", status=409)) == "in-use"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("resnet50.onnx", "resnet50"),
        ("/models/My Net (v2).onnx", "My-Net-v2"),
        ("net.v1.2.pt", "net.v1.2"),
        ("exported/", "exported"),
        ("модель-7.onnx", "7"),
    ],
)
def test_model_name_is_derived_from_the_file_name(path: str, name: str) -> None:
    assert model_name(Path(path)) == name


def test_unusable_file_name_requires_a_model_name() -> None:
    with pytest.raises(InvalidInputError, match="tritonctl push NAME"):
        model_name(Path("модель.onnx"))


@pytest.mark.parametrize(
    ("text", "dtype", "shape"),
    [
        ("x:FP32[-1,16]", DataType.FP32, (-1, 16)),
        ("x:float32[?, 16]", DataType.FP32, (-1, 16)),
        ("sr:INT64", DataType.INT64, ()),
        ("sr:int64[]", DataType.INT64, ()),
        ("model/in:0:string[-1]", DataType.BYTES, (-1,)),
    ],
)
def test_tensor_specs_are_parsed(text: str, dtype: DataType, shape: tuple[int, ...]) -> None:
    spec = parse_spec(text)
    assert (spec.dtype, spec.shape) == (dtype, shape)
    assert text.startswith(spec.name)


@pytest.mark.parametrize("text", ["x", "x:FP31", "x:FP32[a]", "x:FP32[1", ":FP32[1]"])
def test_invalid_tensor_specs_are_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_spec(text)


def test_inputs_are_read_from_a_text_and_from_a_marked_file(tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text('{"x": [[1, 2]]}')
    wanted = [{"name": "x", "data": [[1, 2]]}]
    assert read_tensors('{"x": [[1, 2]]}', None) == wanted
    assert read_tensors(f"@{tmp_path}/request.json", None) == wanted
    with pytest.raises(InvalidInputError, match="the JSON is neither"):
        read_tensors('{"x": [[1, 2]', None)
    with pytest.raises(InvalidInputError, match=r"cannot read missing\.json: No such file"):
        read_tensors("@missing.json", None)


def test_dynamic_axes_are_parsed() -> None:
    assert parse_axes(["x=0,2", "y=1"]) == {"x": [0, 2], "y": [1]}
    assert parse_axes([]) is None
    with pytest.raises(InvalidInputError, match="INPUT=DIM"):
        parse_axes(["x"])


def test_arrays_survive_conversion_to_the_protocol_and_back(tmp_path: Path) -> None:
    arrays = {
        "half": np.asarray([[1.5, np.nan, np.inf]], np.float16),
        "text": np.asarray(["a", "größer"]),
        "flag": np.asarray([True, False]),
        "scalar": np.asarray(7, np.int64),
    }
    target = io.BytesIO()
    save_npz(target, [json.loads(json.dumps(to_protocol(name, array))) for name, array in arrays.items()])
    with np.load(io.BytesIO(target.getvalue()), allow_pickle=False) as back:
        for name, array in arrays.items():
            np.testing.assert_array_equal(back[name], array)
            assert back[name].shape == array.shape


def test_number_in_json_is_a_scalar(tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text('{"x": [[1, 2]], "sr": 16000}')
    x, rate = read_tensors(str(tmp_path / "request.json"), None)
    assert x == {"name": "x", "data": [[1, 2]]}
    assert (rate["shape"], rate["data"]) == ([], [16000])


def test_up_record_is_valid_only_while_its_process_holds_the_lock(tmp_path: Path) -> None:
    (tmp_path / "up.json").write_text('{"url": "http://127.0.0.1:1", "pid": 1}')
    assert UpRecord.read(tmp_path) is None
    with (tmp_path / "up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        record = UpRecord.read(tmp_path)
        assert record is not None
        assert record.url == "http://127.0.0.1:1"
        (tmp_path / "up.json").write_text('{"url": ')
        assert UpRecord.read(tmp_path) is None
    assert UpRecord.read(tmp_path) is None


def test_times_and_sizes_are_formatted() -> None:
    now = datetime.now(UTC)
    assert ago(now) == "now"
    assert ago(now - timedelta(seconds=5.2)) == "5 s ago"
    assert ago(now - timedelta(minutes=3)) == "3 min ago"
    assert ago(now + timedelta(hours=5, seconds=5)) == "in 5 h"
    assert [span(value) for value in (0.0042, 0.5, 2.34, 95.0, 600.0)] == [
        "4.2 ms",
        "500 ms",
        "2.3 s",
        "95 s",
        "10 min",
    ]
    assert [size(count) for count in (7, 2048, 3 << 30)] == ["7 B", "2.0 KiB", "3.0 GiB"]


def _deployment(phase: str, *, ready: int = 1, **settings: object) -> Deployment:
    servers = [{"server": f"s{n}", "phase": "Ready"} for n in range(ready)]
    return Deployment.model_validate(
        {
            "model": "m",
            "revision": 1,
            "at": datetime.now(UTC),
            "spec": {"model": "m", "reference": "m:1", "version": 1, "loaded": True, "settings": settings},
            "status": {"revision": 1, "phase": phase, "message": "no room for another", "servers": servers},
        }
    )


@pytest.mark.parametrize(
    ("deployment", "words"),
    [
        (_deployment("Ready"), None),
        (_deployment("Ready", ready=2, min_replicas=2), None),
        (_deployment("Ready", ready=1, min_replicas=2), "ready with 1 of 2 replicas: no room for another"),
        (_deployment("Unloaded", ready=0), "m:1 is deployed but not loaded: no room for another"),
        (_deployment("Unloaded", ready=0, mode="resident"), "not loaded"),
        (_deployment("Unloaded", ready=0, mode="on-demand"), None),
    ],
)
def test_shortfall_reports_missing_replicas_and_unloaded_models(deployment: Deployment, words: str | None) -> None:
    lacking = shortfall(deployment)
    assert lacking is None if words is None else lacking is not None and words in lacking
    off = deployment.model_copy(update={"spec": deployment.spec.with_changes(loaded=False)})
    assert shortfall(off) is None


def test_models_in_memory_documents_name_their_server() -> None:
    model = {"model": "m", "version": 1, "mode": "pinned", "state": "loaded"}
    assert ServerMemory.model_validate({"server": "s", "models": [model]}).models[0].server == "s"
    assert ServerExplanation.model_validate({"server": "s", "model": model}).model.server == "s"


def test_failed_tls_connection_suggests_tls_options() -> None:
    failed = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate")
    with Client("https://127.0.0.1:1") as client:
        message = client.translate(failed).message
        assert "--ca-file" in message
        assert "tritonctl up" not in message
        assert "tritonctl up" in client.translate(httpx.ConnectError("[Errno 111] Connection refused")).message


ROWS: list[tuple[object, ...]] = [
    ("vad", None, "", 3, Text("styled", style="red"), "Ready"),
    ("モデル", "two\nlines", "ü", -1.5, "tab\there", "a bell \x07 rings"),
    ("a-longer-name", [1, 2], "trailing  ", True, "x" * 300, "\n"),
]


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], [ROWS[2], *ROWS] * 3])
def test_large_table_has_the_same_text_as_a_drawn_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, rows: list[tuple[object, ...]]
) -> None:
    columns = ("model", "two", "c", "number", "text", "end")
    shown = []
    for limit in (1000, 0):
        monkeypatch.setattr("controlplane.cli.output._DRAWN_ROWS", limit)
        Output().table(columns, rows)
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]


def test_json_result_is_indented_and_keeps_every_value(capsys: pytest.CaptureFixture[str]) -> None:
    document: dict[str, object] = {
        "name": "ü",
        "empty": {},
        "none": None,
        "many": [1, 2.5, 1e-9, float("inf"), True],
        "deep": {"a": []},
    }
    Output("json").result([document])
    text = capsys.readouterr().out
    assert json.loads(text) == [document]
    assert text.startswith('[\n  {\n    "name": "ü",\n')
