"""Parameters of headers: what is read fast is what the standard library reads."""

import json
from email.message import Message
from email.utils import collapse_rfc2231_value

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.body import _parameters, parse
from serving.errors import RequestError

NAMES = st.sampled_from(["name", "Name", "filename", "boundary", "filename*", "x-y", "name*0"])
VALUES = st.text(st.sampled_from("ab1.-_/+%*\\;= é\"'"), max_size=6)
QUOTED = VALUES.map(lambda value: f'"{value}"')


@pytest.mark.parametrize(
    ("header", "parameters"),
    [
        ("multipart/form-data; boundary=abc-123", {"boundary": "abc-123"}),
        ('Multipart/Form-Data;BOUNDARY="a b"', {"boundary": "a b"}),
        ('form-data; name="image"; filename="a; b=c.png"', {"name": "image", "filename": "a; b=c.png"}),
        ('form-data; name="one"; name="two"', {"name": "one"}),
        ('form-data; name="im\\"age"', {"name": 'im"age'}),
        ("form-data; filename*=UTF-8''caf%C3%A9.png", {"filename": "café.png"}),
        ("form-data; filename*=unicode_escape''%5Cud800", {"filename": "?"}),
        ("form-data; name=image; filename*=utf-8''x; filename*0=y", {}),
        ("form-data", {}),
        ("", {}),
    ],
)
def test_parameters_of_a_header(header: str, parameters: dict[str, str]) -> None:
    found = _parameters(header)
    assert {name: found[name] for name in parameters} == parameters
    assert not ({"name", "filename", "boundary"} - set(parameters)) & set(found)


@given(st.lists(st.tuples(NAMES, st.one_of(VALUES, QUOTED)), max_size=4))
def test_any_header_is_read_as_the_standard_library_reads_it(pairs: list[tuple[str, str]]) -> None:
    header = "form-data" + "".join(f"; {name}={value}" for name, value in pairs)
    message = Message()
    message["content-type"] = header
    found = _parameters(header)
    for name in ("name", "filename", "boundary"):
        try:
            expected = collapse_rfc2231_value(message.get_param(name, ""))
        except (ValueError, TypeError):
            expected = ""
        assert found.get(name, "") == expected


def form(*parts: tuple[str, bytes]) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    return b"".join(head % (name.encode(), data) for name, data in parts) + b"--b--\r\n"


def test_a_class_prior_for_many_classes_comes_whole() -> None:
    prior = {f"a class with a long name, and a comma, {number}": 1.0 for number in range(9000)}
    text = json.dumps(prior)
    sent = form(("class_prior", text.encode()), ("image", b"x"))
    assert parse(sent, "multipart/form-data; boundary=b", "image", 1).parameters["class_prior"] == text
    body = json.dumps({"image": "eA==", "class_prior": prior}).encode()
    assert json.loads(parse(body, "application/json", "image", 1).parameters["class_prior"]) == prior


def test_a_field_that_is_too_long_is_refused_and_never_cut() -> None:
    sent = form(("class_prior", b" " * 1_000_001), ("image", b"x"))
    with pytest.raises(RequestError) as refused:
        parse(sent, "multipart/form-data; boundary=b", "image", 1)
    assert refused.value.detail().code == "too_long"


def test_a_long_header_of_a_part_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    monkeypatch.setattr(
        "serving.body._parameters", lambda header: read.append(len(header)) or {"name": "image", "boundary": "b"}
    )
    long = b'--b\r\nContent-Disposition: form-data; name="' + b";" * 15_000 + b'"\r\n\r\nx\r\n--b--\r\n'
    parse(long, "multipart/form-data; boundary=b", "image", 1)
    assert max(read) <= 1000
