"""Parameters of headers: what is read fast is what the standard library reads."""

from email.message import Message
from email.utils import collapse_rfc2231_value

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.body import _parameters

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
