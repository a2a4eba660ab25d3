"""Requests that go wrong in every way that a seeded generator thinks of."""

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any

import numpy as np
from PIL import Image

ODD_BYTES = (
    b"\x00",
    b"\xff",
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\r\n",
    b"\r\n\r\n",
    b"--",
    b'"',
    b"{",
    b"\xff\xd8",
)
LABELS = (
    "image/jpeg",
    "image/png",
    "image/jpg",
    "image/svg+xml",
    "text/plain",
    "application/octet-stream",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "application/json; charset=utf-16",
    "nonsense",
    "",
)
ODD_VALUES: tuple[Any, ...] = (None, True, -1, 2**63, 1e308, "", "x" * 500, [], {}, [[]], {"a": {}}, "\ud800", "\0")
TENSOR: dict[str, Any] = {"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3]}
PATHS = ("/classify", "/none", "/static/..%2f..", "/%00", "/static/%00", "//", "/v2/models/a%2fb", "/model/reload")
ODD_HEADERS = (
    "transfer-encoding: chunked",
    "expect: 100-continue",
    "upgrade: websocket",
    "host: [",
    "x: " + "y" * 70_000,
)
ODD_PARAMETERS = (
    "; filename*=unicode_escape''%5Cud800",
    "; filename*=utf-8''x; filename*0=y",
    "; name*0*=utf-9''%ff; name*1=b",
    "; filename*=",
    ";;=",
)
QUERIES = ("", "", "", "?top_k=3", "?top_k=0", "?top_k=%00", "?min_probability=nan", "?learners=maybe", "?a&&=%ff")


@dataclass
class Hostile:
    """One request."""

    kind: str
    method: str
    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@cache
def images() -> list[bytes]:
    """Every kind of image that is read, small."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    smooth = Image.linear_gradient("L").resize((300, 200)).convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray(rng.integers(0, 65536, (40, 60), dtype=np.uint16))
    variants: list[tuple[Image.Image, str, dict[str, Any]]] = [
        *((photo, kind, {}) for photo in (noise, smooth) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")),
        (smooth, "JPEG", {"progressive": True, "exif": turned, "icc_profile": b"icc" * 50}),
        (noise.convert("CMYK"), "JPEG", {}),
        (noise.convert("L"), "JPEG", {}),
        (deep, "PNG", {}),
        (deep, "TIFF", {}),
        (noise.quantize(16), "PNG", {"transparency": 0}),
        (smooth.convert("RGBA"), "PNG", {}),
        (smooth.convert("LA"), "PNG", {}),
        (noise.convert("1"), "TIFF", {"compression": "group4"}),
        *((smooth, "TIFF", {"compression": name}) for name in ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits")),
        (smooth, "WEBP", {"lossless": True}),
        (noise, "WEBP", {"save_all": True, "append_images": [noise.rotate(180)]}),
        (noise, "GIF", {"save_all": True, "append_images": [noise.rotate(180)]}),
        (smooth.quantize(4), "BMP", {}),
    ]
    return [_encoded(*variant) for variant in variants]


def _encoded(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def mutated(rng: Random, data: bytes) -> bytes:
    """Change a few places: most often near the start, where the headers are."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place = min(int(rng.expovariate(1 / 40)) if rng.random() < 0.6 else rng.randrange(len(data) + 1), len(result))
        length = rng.choice((1, 1, 2, 4, 30))
        match rng.randrange(7):
            case 0:
                result[place : place + length] = rng.randbytes(length)
            case 1:
                odd = rng.choice(ODD_BYTES)
                result[place : place + len(odd)] = odd
            case 2:
                del result[place : place + length]
            case 3:
                result[place:place] = rng.choice(ODD_BYTES) * length
            case 4:
                result[place:place] = result[place : place + length * 10]
            case 5:
                del result[rng.randrange(len(result) + 1) :]
            case _:
                if place < len(result):
                    result[place] ^= 1 << rng.randrange(8)
    return bytes(result)


def image(rng: Random) -> bytes:
    """An image: broken, cut short, spliced, or now and then a good one."""
    data = rng.choice(images())
    match rng.randrange(10):
        case 0:
            return data
        case 1:
            return data[: rng.randrange(len(data))]
        case 2:
            other = rng.choice(images())
            return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]
        case 3:
            return rng.randbytes(rng.randrange(300))
        case _:
            return mutated(rng, data)


def raw(rng: Random) -> Hostile:
    return Hostile("raw", "POST", f"/classify{rng.choice(QUERIES)}", image(rng), {"content-type": rng.choice(LABELS)})


def form(rng: Random) -> Hostile:
    path, name, count = rng.choice((("/classify", "image", 1), ("/classify/batch", "images", rng.randrange(1, 5))))
    body = b"".join(_part(rng, name, image(rng)) for _ in range(count))
    if rng.random() < 0.3:
        body += _part(rng, rng.choice(("top_k", "learners", "x" * 300)), rng.randbytes(20))
    body += b"--limit--\r\n"
    kind = "multipart/form-data; boundary=limit"
    if rng.random() < 0.4:
        body = mutated(rng, body)
    if rng.random() < 0.1:
        kind = mutated(rng, kind.encode()).decode("latin-1").replace("\r", "").replace("\n", "").replace("\0", "")
    return Hostile("form", "POST", path, body, {"content-type": kind})


def _part(rng: Random, name: str, data: bytes) -> bytes:
    filename = rng.choice(("a.jpg", "../../etc/passwd", "\N{CAT FACE}.png", 'a"; filename="b', "x" * 400, ""))
    label = rng.choice(LABELS)
    more = rng.choice(ODD_PARAMETERS) if rng.random() < 0.1 else ""
    disposition = f'form-data; name="{name}"; filename="{filename}"{more}'
    head = f"--limit\r\ncontent-disposition: {disposition}\r\ncontent-type: {label}"
    return head.encode() + b"\r\n\r\n" + data + b"\r\n"


def as_json(rng: Random) -> Hostile:
    path, name = rng.choice((("/classify", "image"), ("/classify/batch", "images")))
    text = base64.b64encode(image(rng)).decode()
    value: Any = text if name == "image" else [text] * rng.randrange(4)
    message = {name: value, "top_k": rng.choice((1, 3, "2", 0, None, [], "x"))}
    if rng.random() < 0.3:
        message[rng.choice((name, "learners", "min_probability", "other"))] = rng.choice(ODD_VALUES)
    return Hostile("json", "POST", path, _dumped(rng, message), {"content-type": "application/json"})


def v2(rng: Random) -> Hostile:
    tensor, tail = dict(TENSOR), b""
    if binary := rng.random() < 0.5:
        tail = rng.randbytes(3072)
        tensor["parameters"] = {"binary_data_size": len(tail)}
    else:
        tensor["data"] = list(rng.randbytes(3072))
    if rng.random() < 0.05:
        # As an array of texts of one length, the first would take 10 GB.
        tensor["data"] = rng.choice((["x" * 50_000, *["x"] * 50_000], [[]] * 200_000, [{}] * 100_000))
    message: dict[str, Any] = {"inputs": [tensor], "id": "1"}
    if rng.random() < 0.5:
        target = rng.choice((tensor, message, tensor.setdefault("parameters", {})))
        target[rng.choice((*TENSOR, "data", "inputs", "outputs", "parameters", "binary_data_size"))] = rng.choice(
            ODD_VALUES
        )
    head = _dumped(rng, message)
    headers = {"content-type": "application/octet-stream"}
    if binary or rng.random() < 0.1:
        length = len(head) if rng.random() < 0.8 else rng.choice((-1, 0, 10**9, "x"))
        headers["inference-header-content-length"] = str(length)
    name = "ensemble" if rng.random() < 0.95 else rng.choice(("other", "%00", "..", "%ff", "x" * 500))
    body = head + (tail if rng.random() < 0.8 else tail[:-1])
    return Hostile("v2", "POST", f"/v2/models/{name}/infer", body, headers)


def _dumped(rng: Random, message: Any) -> bytes:
    data = json.dumps(message).encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-16")))
    return mutated(rng, data) if rng.random() < 0.4 else data


def oversized(rng: Random) -> Hostile:
    body = rng.choice(images()) + bytes(rng.randrange(900_000, 1_300_000))
    kind = rng.choice(("image/png", "application/json", "multipart/form-data; boundary=limit"))
    path = rng.choice(("/classify", "/classify/batch", "/v2/models/ensemble/infer"))
    return Hostile("oversized", "POST", path, body, {"content-type": kind})


def elsewhere(rng: Random) -> Hostile:
    path = rng.choice(PATHS)
    headers = {"x-request-id": "\xff" * rng.randrange(200), "authorization": "Bearer \xff", "origin": "null"}
    return Hostile("elsewhere", rng.choice(("GET", "POST", "PUT", "OPTIONS", "HEAD")), path, image(rng), headers)


KINDS: list[Callable[[Random], Hostile]] = [raw] * 8 + [form] * 5 + [as_json] * 3 + [v2] * 2 + [elsewhere]


def request(seed: int) -> Hostile:
    """The request of a seed."""
    rng = Random(seed)
    return oversized(rng) if rng.random() < 0.01 else rng.choice(KINDS)(rng)


def wire(seed: int) -> bytes:
    """A request as it goes over the wire, broken there too."""
    rng = Random(seed)
    asked = rng.choice(KINDS)(rng)
    head = f"{asked.method} {asked.path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    if rng.random() < 0.2:
        head += rng.choice(ODD_HEADERS) + "\r\n"
    length = len(asked.body) + (rng.choice((-5, 5, 10**9, 10**30)) if rng.random() < 0.1 else 0)
    data = f"{head}content-length: {length}\r\n\r\n".encode() + asked.body
    return mutated(rng, data) if rng.random() < 0.7 else data
