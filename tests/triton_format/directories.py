"""Entries of a Triton model repository as people write them: files by path."""

import numpy as np

from tests.support.api import onnx_scale

ONNX_CONFIG = """
name: "any name"
platform: "onnxruntime_onnx"
max_batch_size: 4
version_policy { all { } }
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "labels.txt" } ]
dynamic_batching { preferred_batch_size: [ 2, 4 ] max_queue_delay_microseconds: 100 }
response_cache { enable: true }
model_warmup [ {
  name: "author's"
  batch_size: 1
  inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 2 ] input_data_file: "x.bin" } }
} ]
"""


def onnx(factor: float = 2.0, *, folder: int = 1, labels: str = "cat\ndog\n") -> dict[str, bytes]:
    """An ONNX model with a configuration by hand: labels, a warm-up of its own, the response cache."""
    return {
        "config.pbtxt": ONNX_CONFIG.encode(),
        "labels.txt": labels.encode(),
        "warmup/x.bin": np.ones(2, np.float32).tobytes(),
        f"{folder}/model.onnx": onnx_scale(factor),
    }


def python(body: str, config: str, *, folder: int = 1) -> dict[str, bytes]:
    """A Python model from FP32[-1] to FP32[-1]; ``body`` has the methods of its class."""
    head = (
        'backend: "python"\n'
        'input [ { name: "x" data_type: TYPE_FP32 dims: [ -1 ] } ]\n'
        'output [ { name: "y" data_type: TYPE_FP32 dims: [ -1 ] } ]\n'
    )
    source = (
        "import numpy as np\nimport triton_python_backend_utils as pb_utils\n\n\n"
        "def tensor(request):\n    return pb_utils.get_input_tensor_by_name(request, 'x').as_numpy()\n\n\n"
        "def answer(array):\n"
        "    return pb_utils.InferenceResponse([pb_utils.Tensor('y', array.astype(np.float32))])\n\n\n"
        f"class TritonPythonModel:\n{body}"
    )
    return {"config.pbtxt": (head + config).encode(), f"{folder}/model.py": source.encode()}


def scaling(factor: float = 3.0) -> dict[str, bytes]:
    """A Python model that reads its factor from a file beside its configuration."""
    body = (
        "    def initialize(self, args):\n"
        "        self.factor = float(open(args['model_repository'] + '/data/factor.txt').read())\n\n"
        "    def execute(self, requests):\n"
        "        return [answer(tensor(request) * self.factor) for request in requests]\n"
    )
    return {**python(body, ""), "data/factor.txt": str(factor).encode()}


def counting(factor: float = 1.0) -> dict[str, bytes]:
    """A Python model with state: the sum of the inputs of a sequence, times a factor."""
    body = (
        "    def initialize(self, args):\n"
        f"        self.sums, self.factor = {{}}, {factor}\n\n"
        "    def execute(self, requests):\n"
        "        return [self.one(request) for request in requests]\n\n"
        "    def one(self, request):\n"
        "        def control(name):\n"
        "            return pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1)[0]\n"
        "        key = int(control('ID'))\n"
        "        self.sums[key] = (0 if control('START') else self.sums[key]) + tensor(request)\n"
        "        return answer(self.sums[key] * self.factor)\n"
    )
    config = """
sequence_batching {
  max_sequence_idle_microseconds: 600000000
  oldest { max_candidate_sequences: 64 }
  control_input [
    { name: "START" control [ { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } ] },
    { name: "ID" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } ] }
  ]
}
"""
    return python(body, config)


def repeating() -> dict[str, bytes]:
    """A decoupled Python model: one response for each element of its input."""
    body = (
        "    def execute(self, requests):\n"
        "        for request in requests:\n"
        "            sender = request.get_response_sender()\n"
        "            for value in tensor(request):\n"
        "                sender.send(answer(np.array([value])))\n"
        "            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)\n"
        "        return None\n"
    )
    return python(body, "model_transaction_policy { decoupled: true }\n")


def held_back() -> dict[str, bytes]:
    """A decoupled Python model: it answers the first element at once, and the others after a negative number came."""
    body = (
        "    def initialize(self, args):\n"
        "        self.held = []\n\n"
        "    def execute(self, requests):\n"
        "        for request in requests:\n"
        "            sender, values = request.get_response_sender(), tensor(request)\n"
        "            sender.send(answer(values[:1]))\n"
        "            self.held.append((sender, values[1:]))\n"
        "            if values[0] <= 0:\n"
        "                self.release()\n"
        "        return None\n\n"
        "    def release(self):\n"
        "        for sender, values in self.held:\n"
        "            for value in values:\n"
        "                sender.send(answer(np.array([value])))\n"
        "            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)\n"
        "        self.held = []\n"
    )
    return python(body, "model_transaction_policy { decoupled: true }\n")


def named(backend: str, file: str) -> dict[str, bytes]:
    """An entry of a backend that the embedded server does not have."""
    config = (
        f'backend: "{backend}"\n'
        'input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]\n'
        'output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]\n'
    )
    return {"config.pbtxt": config.encode(), f"1/{file}": b"opaque"}


ENSEMBLE = b"""
platform: "ensemble"
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]
ensemble_scheduling { step [ { model_name: "a" model_version: -1
  input_map { key: "x" value: "x" } output_map { key: "y" value: "y" } } ] }
"""
