"""The Open Inference Protocol, version 2, with its extension for binary tensors: what Triton's clients speak."""

from http import HTTPStatus
from itertools import chain
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Header, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

import tailstack
from serving.batcher import Result
from serving.body import too_many
from serving.errors import RequestError, malformed
from serving.runtime import Model
from serving.server import Server
from tailstack.artifact import INPUT, LEARNER_PROBABILITIES, PROBABILITIES
from tailstack.images import Pixels, Size

HEADER_LENGTH = "inference-header-content-length"
_BINARY = {"type": "string", "format": "binary"}
_MAX_OBJECTS = 1000
_MANY_VALUES = 20_000
"""Of an answer: as JSON they take some ten milliseconds, in which the event loop would serve nobody else."""
V2_ERROR: dict[str, Any] = {
    "application/json": {
        "schema": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
    }
}
"""The body of the protocol's errors, as OpenAPI describes it."""
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": V2_ERROR}
    for status, text in {
        400: "malformed request",
        401: "no API key or a wrong one, where keys are set",
        404: "no such model or version",
        408: "the request did not arrive in time",
        413: "too many bytes",
        415: "a compressed body",
        503: "not ready or full",
        504: "no answer in time",
    }.items()
}


class _Tensor(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: str
    shape: list[Annotated[int, Field(ge=0, le=1_000_000)]] = Field(max_length=8)
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class _Wanted(BaseModel):
    name: str
    parameters: dict[str, Any] = {}


class InferRequest(BaseModel):
    """The JSON part of a request."""

    id: str = ""
    parameters: dict[str, Any] = {}
    inputs: list[_Tensor] = Field(min_length=1, max_length=1)
    outputs: list[_Wanted] | None = Field(default=None, max_length=16)


class ServerMetadata(BaseModel):
    """The answer of `/v2`."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """A tensor's type and shape; -1 is the batch."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """The answer of `/v2/models/{name}`."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Live(BaseModel):
    """The answer of `/v2/health/live`."""

    live: bool


class Ready(BaseModel):
    """The answer of `/v2/health/ready`."""

    ready: bool


class ModelReady(BaseModel):
    """The answer of `/v2/models/{name}/ready`."""

    name: str
    ready: bool


class OutputTensor(BaseModel):
    """An output; its values are in `data`, or after the JSON where `parameters` has `binary_data_size`."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] | None = None
    data: list[float] | None = None


class InferAnswer(BaseModel):
    """The JSON part of the answer of `/infer`."""

    model_name: str
    model_version: str
    id: str
    outputs: list[OutputTensor]

    model_config = ConfigDict(protected_namespaces=())


def add(app: FastAPI, server: Server) -> None:
    """Add the routes to `app`."""

    def find(name: str, version: str = "") -> Model:
        model = server.live.current
        if name != model.artifact.name or version not in ("", model.version):
            wanted = f"model {name[:100]!r}" + (f" version {version[:40]!r}" if version else "")
            raise RequestError(HTTPStatus.NOT_FOUND, "not_found", f"there is no {wanted}; GET /model names it")
        return model

    @app.get("/v2", summary="The server", tags=["v2"], responses={401: _ERRORS[401]})
    async def metadata() -> ServerMetadata:
        return ServerMetadata(name="tailstack", version=tailstack.__version__, extensions=["binary_tensor_data"])

    @app.get("/v2/health/live", summary="Whether the process runs", tags=["v2"])
    async def live() -> Live:
        return Live(live=True)

    @app.get("/v2/health/ready", summary="Whether requests are to be sent", tags=["v2"], responses={503: _ERRORS[503]})
    async def ready() -> Ready:
        server.check_ready()
        return Ready(ready=True)

    missing: dict[int | str, dict[str, Any]] = {status: _ERRORS[status] for status in (401, 404)}

    @app.get("/v2/models/{name}", summary="A model's tensors", tags=["v2"], responses=missing)
    @app.get("/v2/models/{name}/versions/{version}", summary="A model's tensors", tags=["v2"], responses=missing)
    async def model_metadata(name: str, version: str = "") -> ModelMetadata:
        return _describe(find(name, version))

    missing |= {503: _ERRORS[503]}

    @app.get("/v2/models/{name}/ready", summary="Whether it answers", tags=["v2"], responses=missing)
    @app.get("/v2/models/{name}/versions/{version}/ready", summary="Whether it answers", tags=["v2"], responses=missing)
    async def model_ready(name: str, version: str = "") -> ModelReady:
        find(name, version)
        server.check_ready()
        return ModelReady(name=name, ready=True)

    body = {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": InferRequest.model_json_schema(ref_template="#/components/schemas/{model}")
                },
                "application/octet-stream": {"schema": _BINARY},
            },
        }
    }

    answers = _ERRORS | {200: {"content": {"application/octet-stream": {"schema": _BINARY}}}}
    options: dict[str, Any] = {
        "summary": "Infer",
        "tags": ["v2"],
        "response_model": InferAnswer,
        "responses": answers,
        "openapi_extra": body,
    }

    @app.post("/v2/models/{name}/infer", **options)
    @app.post("/v2/models/{name}/versions/{version}/infer", **options)
    async def infer(
        name: str,
        request: Request,
        version: str = "",
        inference_header_content_length: Annotated[
            str | None, Header(description="bytes of JSON before tensors")
        ] = None,
    ) -> Response:
        model = find(name, version)
        classifier = server.classifier
        classifier.check_room(1)
        async with server.receiver.receive(request) as data, classifier.deadline():
            arguments = (data, inference_header_content_length, model, server.settings.images_per_request)
            inference, images = await classifier.in_thread(_read, *arguments)
            with classifier.admit(len(images)):
                results = await classifier.classify_pixels(model, images)
            if sum(result.probabilities.size + result.votes.size for result in results) > _MANY_VALUES:
                return await classifier.in_thread(_answer, model, inference, results)
            return _answer(model, inference, results)


def _describe(model: Model) -> ModelMetadata:
    classes, learners = len(model.artifact.classes), len(model.artifact.learners)
    return ModelMetadata(
        name=model.artifact.name,
        versions=[model.version],
        platform=f"{model.engine.runtime.split()[0]}_onnx",
        inputs=[TensorMetadata(name=INPUT, datatype="UINT8", shape=[-1, *model.artifact.image_size, 3])],
        outputs=[
            TensorMetadata(name=PROBABILITIES, datatype="FP32", shape=[-1, classes]),
            TensorMetadata(name=LEARNER_PROBABILITIES, datatype="FP32", shape=[-1, learners, classes]),
        ],
    )


def _read(body: bytes, header_length: str | None, model: Model, max_images: int) -> tuple[InferRequest, Pixels]:
    """Take a request apart, into its JSON and its images, uint8 `[images, height, width, 3]`."""
    length = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdecimal() and len(header_length) < 10):
            raise malformed("malformed_header", f"{HEADER_LENGTH} is not a number")
        length = int(header_length)
        if length > len(body):
            raise malformed("malformed_header", f"{HEADER_LENGTH} is larger than the body")
    _check_amount(body, length, model.artifact.image_size, max_images)
    try:
        request = InferRequest.model_validate_json(body[:length])
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise malformed("malformed_json", f"{where}: {first['msg']}"[:300].removeprefix(": ")) from error
    _check_outputs(request)
    return request, _images(request.inputs[0], body[length:], model, max_images)


def _check_amount(body: bytes, length: int, size: Size, max_images: int) -> None:
    """Refuse JSON of more objects and values than a request needs, before it is parsed: as Python's, they are large."""
    if body.count(b"{", 0, length) > _MAX_OBJECTS:
        raise malformed("malformed_json", f"the JSON has more than {_MAX_OBJECTS} objects")
    height, width = size
    # An image nests a list of three values for each of its pixels, in a list for each of its rows.
    most = max_images * (height * (width * 4 + 1) + 1) + _MAX_OBJECTS
    if body.count(b",", 0, length) + body.count(b"[", 0, length) > most:
        raise malformed("malformed_json", f"the JSON has more values than {max_images} image(s)")


def _check_outputs(request: InferRequest) -> None:
    for output in request.outputs or []:
        if output.name not in (PROBABILITIES, LEARNER_PROBABILITIES):
            raise malformed("unknown_output", f"there is no output {output.name[:100]!r}")
        unknown = set(output.parameters) - {"binary_data"}
        if unknown:
            raise malformed("unknown_parameter", f"outputs have no parameter {min(unknown)[:100]!r} here")


def _images(tensor: _Tensor, binary: bytes, model: Model, max_images: int) -> Pixels:
    expected = [*model.artifact.image_size, 3]
    if (tensor.name, tensor.datatype) != (INPUT, "UINT8") or tensor.shape[1:] != expected or tensor.shape[0] < 1:
        raise malformed("wrong_tensor", f"the input has to be {INPUT!r}, UINT8, of shape [images, {str(expected)[1:]}")
    if tensor.shape[0] > max_images:
        raise too_many(max_images)
    size = int(np.prod(tensor.shape))
    if "binary_data_size" in tensor.parameters:
        if tensor.data is not None or tensor.parameters["binary_data_size"] != len(binary) or len(binary) != size:
            raise malformed("wrong_size", f"the tensor needs {size} bytes of binary data, and no `data`")
        return np.frombuffer(binary, dtype=np.uint8).reshape(tensor.shape)
    values = _flat(tensor.data, tensor.shape)
    if len(values) != size or set(map(type, values)) != {int} or binary:
        raise malformed("wrong_size", f"`data` has to be {size} whole numbers")
    try:
        return np.frombuffer(bytes(values), dtype=np.uint8).reshape(tensor.shape)
    except ValueError as error:
        raise malformed("wrong_value", "`data` has values that are not from 0 to 255") from error


def _flat(data: list[Any] | None, shape: list[int]) -> list[Any]:
    """Return the values of a tensor, which may be nested as its shape is."""
    values = data or []
    for extent in shape[1:]:
        if not any(type(row) is list for row in values):
            break
        if not all(type(row) is list and len(row) == extent for row in values):
            raise malformed("wrong_size", "`data` is not nested as `shape` says")
        values = list(chain.from_iterable(values))
    return values


def _answer(model: Model, request: InferRequest, results: list[Result]) -> Response:
    probabilities = np.stack([result.probabilities for result in results])
    tensors = {
        PROBABILITIES: model.class_prior.apply(probabilities) if model.class_prior else probabilities,
        LEARNER_PROBABILITIES: np.stack([result.votes for result in results]),
    }
    default = request.parameters.get("binary_data_output") is True
    wanted = request.outputs or [_Wanted(name=name) for name in tensors]
    outputs: list[OutputTensor] = []
    binary: list[bytes] = []
    for output in wanted:
        tensor = tensors[output.name]
        entry = OutputTensor(name=output.name, datatype="FP32", shape=list(tensor.shape))
        if output.parameters.get("binary_data", default) is True:
            binary.append(tensor.astype("<f4").tobytes())
            entry.parameters = {"binary_data_size": len(binary[-1])}
        else:
            entry.data = tensor.ravel().tolist()
        outputs.append(entry)
    answer = InferAnswer(model_name=model.artifact.name, model_version=model.version, id=request.id, outputs=outputs)
    head = answer.model_dump_json(exclude_none=True).encode()
    if not binary:
        return Response(head, media_type="application/json")
    headers = {HEADER_LENGTH: str(len(head))}
    return Response(head + b"".join(binary), media_type="application/octet-stream", headers=headers)
