"""Test that the chunked reader of JSON arrays accepts and refuses what `json` does."""

from __future__ import annotations

import io
import json
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from selfalign.data import json_array
from selfalign.errors import UserError

objects = st.lists(
    st.dictionaries(st.text(max_size=6), st.text(max_size=30) | st.integers() | st.floats() | st.none()), max_size=6
)


@given(objects, st.integers(1, 40), st.sampled_from([None, 0, 3]), st.booleans())
def test_array_read_in_chunks_equals_json(rows: list[Any], chunk: int, indent: int | None, ascii_only: bool):
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    assert _parsed(text.encode("utf-8"), chunk) == repr(rows)


@given(st.data())
def test_broken_array_is_refused_like_json(data: st.DataObject):
    text = json.dumps(data.draw(objects), indent=data.draw(st.sampled_from([None, 1]))).encode()
    at = data.draw(st.integers(0, len(text)))
    mended = text[:at] + data.draw(st.binary(max_size=3)) + text[at + data.draw(st.integers(0, 3)) :]
    try:
        expected = json.loads(mended.decode("utf-8-sig"))
        whole = isinstance(expected, list) and all(isinstance(row, dict) for row in expected)
        json.dumps(expected, ensure_ascii=False).encode()
    except ValueError:
        whole = False
    results = _parsed(mended, data.draw(st.integers(1, 40)))
    assert results == repr(expected) if whole else results.startswith("UserError")


def _parsed(data: bytes, chunk: int) -> str:
    class File(io.BytesIO):
        def open(self, mode: str) -> File:
            return self

    before, json_array.CHUNK = json_array.CHUNK, chunk
    try:
        return repr([value for _, value in json_array.elements(File(data))])  # type: ignore[arg-type]
    except UserError as error:
        assert re.match(r"<.*>:\d+ is not ", str(error))
        return "UserError"
    finally:
        json_array.CHUNK = before
