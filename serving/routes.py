"""The routes that classify images."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from serving.body import Upload, parse
from serving.classifier import Classifier
from serving.errors import ErrorResponse, RequestError
from serving.protocol import (
    DEFAULT_TOP_K,
    BatchClassification,
    Classification,
    ImageError,
    ImageResult,
    Options,
    image_result,
    name_of,
)
from serving.runtime import Model
from serving.server import Server

T = TypeVar("T")
_MANY = 500
"""Predictions. Four times as many take some ten milliseconds."""
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text}
    for status, text in {
        400: "malformed request",
        401: "no API key or a wrong one, where keys are set",
        408: "the request did not arrive in time",
        413: "too many bytes or pixels",
        415: "not an image of a kind that is read here",
        422: "a broken image",
        503: "full; the header Retry-After says when to come back",
        504: "no answer in time",
    }.items()
}
_BINARY = {"type": "string", "format": "binary"}
_BASE64 = {"type": "string", "format": "byte", "description": "base64; a data: URL will do"}
_OPTIONS: dict[str, Any] = {
    "top_k": {"type": "integer", "minimum": 1, "maximum": 999_999_999, "default": DEFAULT_TOP_K},
    "min_probability": {"type": "number", "minimum": 0, "maximum": 1, "default": 0},
    "learners": {"type": "boolean", "default": True, "description": "each learner's vote"},
    "coverage": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "description": "adds a prediction set that has the true class so often; `coverages` of GET /model lists which",
    },
}
_PRIOR_TEXT = "a JSON object with the weight of each class: for which class mix probabilities are to be right"
_PRIOR_IN_TEXT = {"class_prior": {"type": "string", "description": _PRIOR_TEXT}}
_PRIOR_IN_JSON = {
    "class_prior": {
        "type": "object",
        "additionalProperties": {"type": "number", "minimum": 0},
        "description": _PRIOR_TEXT,
    }
}


class _BareRoute(APIRoute):
    """A route whose endpoint takes the request and makes the response: nothing is left for FastAPI to resolve."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the endpoint as it is."""
        return self.endpoint


def _body(field: str, binary: dict[str, Any], base64: dict[str, Any], *, raw: bool) -> dict[str, Any]:
    content: dict[str, Any] = {
        kind: {"schema": {"type": "object", "required": [field], "properties": {field: schema, **_OPTIONS, **prior}}}
        for kind, schema, prior in (
            ("multipart/form-data", binary, _PRIOR_IN_TEXT),
            ("application/json", base64, _PRIOR_IN_JSON),
        )
    }
    if raw:
        content["application/octet-stream"] = {"schema": _BINARY}
    parameters = [
        {"name": name, "in": "query", "schema": schema} for name, schema in {**_OPTIONS, **_PRIOR_IN_TEXT}.items()
    ]
    return {"parameters": parameters, "requestBody": {"required": True, "content": content}}


def add(app: FastAPI, server: Server) -> None:
    """Add the routes to `app`."""
    router = APIRouter(route_class=_BareRoute)

    @router.post(
        "/classify",
        responses=ERRORS,
        response_model=Classification,
        openapi_extra=_body("image", _BINARY, _BASE64, raw=True),
        summary="Classify one image",
    )
    async def classify(request: Request) -> Response:
        """Send the image as the form's field `image`, as base64 in JSON, or as the body itself."""
        classifier = server.classifier
        classifier.check_room(1)
        async with server.receiver.receive(request) as body, classifier.deadline():
            model = classifier.model
            with classifier.admit(1):
                read = partial(_read, model, body, request)
                options, answer = await classifier.classify_image(model, read, len(body))
                result = await _built(classifier, _shown(model, options), image_result, model, answer, options)
        classification = Classification(
            request_id=request.state.request_id,
            model=name_of(model),
            predictions=result.predictions,
            learners=result.learners,
            uncertainty=result.uncertainty,
        )
        return await _built(classifier, len(result.predictions), _json, classification)

    @router.post(
        "/classify/batch",
        responses=ERRORS,
        response_model=BatchClassification,
        openapi_extra=_body(
            "images", {"type": "array", "items": _BINARY}, {"type": "array", "items": _BASE64}, raw=False
        ),
        summary="Classify several images",
    )
    async def classify_batch(request: Request) -> Response:
        """Send the images as the form's repeated field `images`, or as a list in JSON.

        Each image has its own result or its own error, in order; one that takes too long costs the others nothing.
        """
        classifier = server.classifier
        classifier.check_room(1)
        async with server.receiver.receive(request) as body:
            model, due = classifier.model, classifier.due()
            kind = request.headers.get("content-type", "")
            async with classifier.deadline(due):
                content = await classifier.in_thread(parse, body, kind, "images", server.settings.images_per_request)
            options = Options.read(model, request.query_params, content.parameters)
            with classifier.admit(len(content.images)):
                items = (_one(classifier, model, upload, options, due) for upload in content.images)
                results = await asyncio.gather(*items)
        classification = BatchClassification(
            request_id=request.state.request_id, model=name_of(model), results=list(results)
        )
        return await _built(classifier, len(results) * _shown(model, options), _json, classification)

    # Not `include_router`: that hides them, behind one entry, from whoever lists the routes of the app.
    app.routes.extend(router.routes)


def _read(model: Model, body: bytes, request: Request) -> tuple[Options, Upload]:
    """Take a request apart, into what it wants to know and its image."""
    content = parse(body, request.headers.get("content-type", ""), "image", max_images=1)
    return Options.read(model, request.query_params, content.parameters), content.images[0]


async def _one(
    classifier: Classifier, model: Model, upload: Upload, options: Options, due: float
) -> ImageResult | ImageError:
    try:
        async with classifier.deadline(due):
            _, answer = await classifier.classify_image(model, lambda: (None, upload), len(upload.data))
            return await _built(classifier, _shown(model, options), image_result, model, answer, options)
    except RequestError as error:
        return ImageError(error=error.detail())


def _shown(model: Model, options: Options) -> int:
    """Return how many predictions an image gets at most."""
    return min(options.top_k, len(model.artifact.classes))


async def _built(classifier: Classifier, predictions: int, work: Callable[..., T], *arguments: object) -> T:
    """Return a part of an answer; of so many predictions that they would hold others up, it is made in a thread."""
    return await classifier.in_thread(work, *arguments) if predictions > _MANY else work(*arguments)


def _json(answer: Classification | BatchClassification) -> Response:
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")
