"""What a request that can't be answered gets: a status, a code for programs and a message for people."""

from http import HTTPStatus

from pydantic import BaseModel
from starlette.responses import JSONResponse

from tailstack.images import BrokenImageError, ImageError, ImageTooLargeError, UnsupportedImageError

RETRY_AFTER_S = 1


def speaks_v2(path: str) -> bool:
    """Return whether a route is one of the Open Inference Protocol's, which has its own body of errors."""
    return path == "/v2" or path.startswith("/v2/")


class ErrorDetail(BaseModel):
    """Why a request failed."""

    code: str
    message: str


class ErrorResponse(BaseModel):
    """The body of every error, but for those under /v2, whose protocol wants `{"error": "message"}`."""

    error: ErrorDetail


class RequestError(Exception):
    """A request that can't be answered."""

    def __init__(self, status: HTTPStatus, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    @classmethod
    def of_image(cls, error: ImageError, name: str) -> "RequestError":
        """Give an image's error its status; `name` is what the client called the image, if it did."""
        status, code = _IMAGE_ERRORS[type(error)]
        return cls(status, code, f"{name}: {error}" if name else str(error))

    def detail(self) -> ErrorDetail:
        """Return the error as it stands in an answer."""
        return ErrorDetail(code=self.code, message=str(self))

    def response(self, path: str) -> JSONResponse:
        """Return the answer to a request for `path`."""
        overloaded = self.status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS)
        headers = {"retry-after": str(RETRY_AFTER_S)} if overloaded else {}
        if self.status == HTTPStatus.UNAUTHORIZED:
            headers["www-authenticate"] = "Bearer"
        if speaks_v2(path):
            return JSONResponse({"error": str(self)}, self.status, headers)
        return JSONResponse(ErrorResponse(error=self.detail()).model_dump(), self.status, headers)


_IMAGE_ERRORS: dict[type[ImageError], tuple[HTTPStatus, str]] = {
    UnsupportedImageError: (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_image"),
    ImageTooLargeError: (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "image_too_large"),
    BrokenImageError: (HTTPStatus.UNPROCESSABLE_ENTITY, "broken_image"),
}


def malformed(code: str, message: str) -> RequestError:
    """Return a 400."""
    return RequestError(HTTPStatus.BAD_REQUEST, code, message)


def draining() -> RequestError:
    """Return the 503 of a server that was told to end."""
    return RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "draining", "the server is going down: try again")


def overloaded(what: str) -> RequestError:
    """Return a 503 that says when to come back."""
    return RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", f"the server is full ({what}): come back later")
