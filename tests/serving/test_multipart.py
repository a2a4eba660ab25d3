"""Forms, taken apart: what any client may send, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.multipart import MultipartError, Part, split_form

BOUNDARY = "b0undary"
DATA = st.binary(max_size=60) | st.lists(st.sampled_from([b"\r\n", b"--", b"b0", b"\r\n--b0undar", b"x"])).map(b"".join)


def form(*parts: tuple[bytes, bytes], end: bytes = b"--\r\n") -> bytes:
    return b"".join(b"--b0undary\r\n%s\r\n\r\n%s\r\n" % part for part in parts) + b"--b0undary" + end


def split(body: bytes, most: int = 10) -> list[Part]:
    return list(split_form(body, BOUNDARY, most))


@given(st.lists(DATA, max_size=5))
def test_data_comes_back_as_it_was_sent(values: list[bytes]) -> None:
    values = [value for value in values if b"\r\n--b0undary" not in b"\r\n" + value]
    parts = [(b"Content-Disposition: form-data", value) for value in values]
    assert split(form(*parts)) == [Part("form-data", value) for value in values]


@pytest.mark.parametrize(
    ("head", "disposition"),
    [
        (b"Content-Type: image/png\r\nCONTENT-DISPOSITION:\tform-data; name=a ", "form-data; name=a"),
        (b"content-disposition: one\r\ncontent-disposition: two", "one"),
        (b"content-disposition: caf\xc3\xa9", "café"),
        (b"content-disposition: \xff", "\ufffd"),
        (b"x: y", ""),
    ],
)
def test_the_first_disposition_counts(head: bytes, disposition: str) -> None:
    assert split(form((head, b"data"))) == [Part(disposition, b"data")]


def test_a_part_needs_no_headers_and_a_form_no_parts() -> None:
    assert split(b"--b0undary\r\n\r\ndata\r\n--b0undary--") == [Part("", b"data")]
    assert split(b"--b0undary--") == []


def test_line_breaks_before_the_form_and_anything_after_it_are_left_out() -> None:
    body = b"\r\n\r\n" + form((b"a: b", b"data")) + b"after\r\n--b0undary\r\n\r\nit"
    assert split(body) == [Part("", b"data")]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "doesn't begin"),
        (b"data", "doesn't begin"),
        (b"before\r\n" + form((b"a: b", b"data")), "doesn't begin"),
        (b"--b0undary", "no end of its headers"),
        (b"--b0undaryx\r\n\r\n\r\n--b0undary--", "no end of its headers"),
        (form((b"a: b", b"data"), end=b""), "no end of its headers"),
        (b"--b0undary\r\n\r\ndata", "cut short"),
        (form((b"no colon", b"data")), "without a colon"),
        (form((b"a: " + b"b" * 20_000, b"data")), "no end of its headers"),
        (form(*[(b"a: b", b"")] * 11), "more than 10 parts"),
        (form(*[(b"a: b", b"")] * 10_000), "more than 10 parts"),
    ],
)
def test_what_is_no_form_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(MultipartError, match=reason):
        split(body)


def test_as_many_parts_as_are_allowed() -> None:
    assert len(split(form(*[(b"a: b", b"")] * 10))) == 10


@given(st.binary(max_size=80))
def test_no_bytes_raise_anything_else(tail: bytes) -> None:
    for body in (tail, b"--b0undary" + tail, b"--b0undary\r\n" + tail + b"\r\n--b0undary--"):
        try:
            parts = split(body)
        except MultipartError:
            continue
        assert sum(len(part.data) for part in parts) <= len(body)
