"""The peers: what each installs, how it is started, and what it is asked."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.http_load import Body, form

RUNTIME = ("numpy", "onnxruntime", "pillow")


@dataclass(frozen=True)
class Peer:
    """One server. `{port}` in `command` is where it listens; its first word is a program of its environment."""

    environment: str
    """Peers that share one name share one virtual environment."""
    packages: tuple[str, ...]
    """What is installed from the package index besides `RUNTIME`; the first is the peer itself."""
    command: tuple[str, ...]
    body: Callable[[bytes], Body]
    """Makes a request's body of a picture."""
    path: str = "/classify"
    ready: str = "/ready"
    """What answers 200 when the model is loaded."""
    variables: dict[str, str] = field(default_factory=dict)
    """Of its environment; `{port}`, `{other_port}`, `{third_port}` are free ports, `{home}` an empty folder."""


def _form(field: str) -> Callable[[bytes], Body]:
    return lambda picture: form(picture, field)


def _inference_request(picture: bytes) -> Body:
    tensor = {
        "name": "image",
        "shape": [1, 1],
        "datatype": "BYTES",
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(picture).decode()],
    }
    return Body("application/json", json.dumps({"inputs": [tensor]}).encode())


_BENTOML = {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": "{home}"}

PEERS = {
    "fastapi": Peer(
        "fastapi",
        ("fastapi", "uvicorn[standard]", "python-multipart"),
        ("uvicorn", "fastapi_app:app", "--host", "127.0.0.1", "--port", "{port}", "--no-access-log"),
        _form("image"),
    ),
    "litserve": Peer(
        "litserve", ("litserve", "python-multipart"), ("python", "litserve_app.py"), _form("image"), ready="/health"
    ),
    "ray serve": Peer(
        "rayserve",
        ("ray[serve]", "python-multipart"),
        ("python", "ray_app.py"),
        _form("image"),
        variables={"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
    ),
    "mlserver": Peer(
        "mlserver",
        # With later ones, its inference workers of 1.7.1 find no event loop.
        ("mlserver", "uvloop<0.22"),
        ("mlserver", "start", "mlserver"),
        _inference_request,
        path="/v2/models/classifier/infer",
        ready="/v2/models/classifier/ready",
        variables={
            "MLSERVER_DEBUG": "false",
            "MLSERVER_HOST": "127.0.0.1",
            "MLSERVER_HTTP_PORT": "{port}",
            "MLSERVER_GRPC_PORT": "{other_port}",
            "MLSERVER_METRICS_PORT": "{third_port}",
        },
    ),
    "bentoml, PIL": Peer(
        "bentoml",
        ("bentoml",),
        ("bentoml", "serve", "bentoml_pil:Peer", "--host", "127.0.0.1", "--port", "{port}"),
        _form("image"),
        ready="/readyz",
        variables=_BENTOML,
    ),
    "bentoml, batchable": Peer(
        "bentoml",
        ("bentoml",),
        ("bentoml", "serve", "bentoml_batch:Peer", "--host", "127.0.0.1", "--port", "{port}"),
        _form("images"),
        ready="/readyz",
        variables=_BENTOML,
    ),
}
