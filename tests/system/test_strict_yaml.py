"""Parse and validate YAML documents."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from selfalign.errors import UserError
from selfalign.system import strict_yaml
from selfalign.system.strict_yaml import Strict, parse_yaml, read_text, validate


class Room(Strict):
    colour: str
    size: int = 1
    height: float = 2.5


class House(Strict):
    street: str
    hall: Room
    rooms: list[Room] = []
    owner: str | None = None


GOOD = {"street": "Elm", "hall": {"colour": "red"}}


def test_valid_document_is_read():
    house = validate(House, {**GOOD, "rooms": [{"colour": "blue", "size": 3}]}, "doc")
    assert house.hall.colour == "red"
    assert house.rooms == [Room(colour="blue", size=3)]


def test_unknown_key_gets_a_suggestion():
    with pytest.raises(UserError, match=r"^doc: unknown key 'onwer'; did you mean 'owner'\?$"):
        validate(House, {**GOOD, "onwer": "Ada"}, "doc")


def test_unknown_key_in_a_group_gets_a_suggestion_with_its_path():
    with pytest.raises(UserError, match=r"unknown key 'hall\.sise'; did you mean 'size'\?"):
        validate(House, {"street": "Elm", "hall": {"colour": "red", "sise": 2}}, "doc")


def test_unknown_key_in_a_list_gets_a_suggestion_with_its_position():
    with pytest.raises(UserError, match=r"unknown key 'rooms\.1\.heigth'; did you mean 'height'\?"):
        validate(House, {**GOOD, "rooms": [{"colour": "a"}, {"colour": "b", "heigth": 3.0}]}, "doc")


def test_unknown_key_without_a_near_one_lists_all():
    with pytest.raises(UserError, match="unknown key 'zzz'; known keys: street, hall, rooms, owner"):
        validate(House, {**GOOD, "zzz": 1}, "doc")


def test_typo_in_a_required_key_gets_a_suggestion():
    with pytest.raises(UserError, match=r"unknown key 'strete'; did you mean 'street'\?"):
        validate(House, {"strete": "Elm", "hall": {"colour": "red"}}, "doc")


def test_missing_key_is_named():
    with pytest.raises(UserError, match=r"^doc: the key 'street' is missing$"):
        validate(House, {"hall": {"colour": "red"}}, "doc")
    with pytest.raises(UserError, match=r"the key 'hall\.colour' is missing"):
        validate(House, {"street": "Elm", "hall": {}}, "doc")


@pytest.mark.parametrize(
    ("document", "key", "value"),
    [
        ({**GOOD, "street": 5}, "street", "5"),
        ({**GOOD, "hall": {"colour": "red", "size": "3"}}, "hall.size", "'3'"),
        ({**GOOD, "hall": {"colour": "red", "size": 1.5}}, "hall.size", "1.5"),
        ({**GOOD, "hall": {"colour": "red", "size": True}}, "hall.size", "True"),
        ({**GOOD, "hall": {"colour": "red", "height": "high"}}, "hall.height", "'high'"),
        ({**GOOD, "rooms": {"colour": "red"}}, "rooms", "colour"),
        ({**GOOD, "hall": "red"}, "hall", "'red'"),
    ],
)
def test_wrong_type_names_key_and_value(document: dict, key: str, value: str):
    with pytest.raises(UserError) as error:
        validate(House, document, "doc")
    assert str(error.value).startswith(f"doc: {key} is ")
    assert value in str(error.value)


def test_long_wrong_value_is_shortened():
    with pytest.raises(UserError) as error:
        validate(House, {**GOOD, "hall": "x" * 10_000}, "doc")
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("value", [None, [], "text", 5])
def test_document_must_be_a_mapping(value: object):
    with pytest.raises(UserError, match="doc must be a mapping of keys"):
        validate(House, value, "doc")


def test_keys_must_be_text():
    with pytest.raises(UserError):
        validate(House, {**GOOD, 7: "x"}, "doc")


def test_duplicate_key_is_refused_with_its_line():
    with pytest.raises(UserError, match="doc:3: the key 'a' occurs twice"):
        parse_yaml("a: 1\nb: 2\na: 3\n", "doc")
    with pytest.raises(UserError, match="doc:3: the key 'b' occurs twice"):
        parse_yaml("a:\n  b: 2\n  b: 3\n", "doc")


def test_alias_is_refused_with_its_line():
    with pytest.raises(UserError, match=r"doc:2: aliases \(\*x\) are not allowed"):
        parse_yaml("a: &x [1, 2]\nb: *x\n", "doc")


def test_billion_laughs_is_refused_at_once():
    text = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    with pytest.raises(UserError, match="aliases"):
        parse_yaml(text, "doc")


def test_oversized_text_is_refused():
    with pytest.raises(UserError, match="doc has 1,000,001 characters"):
        parse_yaml("#" * 1_000_001, "doc")
    assert parse_yaml("#" * 999_990, "doc") is None


def test_python_objects_are_refused():
    with pytest.raises(UserError, match="doc:1"):
        parse_yaml("!!python/object/apply:os.getcwd []", "doc")


@pytest.mark.parametrize("text", ["a: [", "a: b: c", "\tx: 1", "a: 'open", "- a\nb: 1", "? [1, 2]\n: 3"])
def test_broken_yaml_names_the_line(text: str):
    with pytest.raises(UserError, match=r"^doc(:\d+:| is not YAML)"):
        parse_yaml(text, "doc")


@pytest.mark.parametrize(
    "text", ["!!bool x", "!!int ''", "!!float ''", "!!timestamp x", "!!map [a]", "!!map {a: !!bool maybe}"]
)
def test_wrong_explicit_tag_is_refused(text: str):
    with pytest.raises(UserError):
        parse_yaml(text, "doc")


def _parse_or_user_error(text: str) -> None:
    try:
        parse_yaml(text, "doc")
    except UserError as error:
        assert "doc" in str(error)


@given(st.text())
@example("[" * 1500)
@example("9" * 5000)
@example("2001-02-31")
@example("a: \x00")
@example("\ufeff")
def test_parse_yaml_raises_nothing_but_user_errors(text: str):
    _parse_or_user_error(text)


_FRAGMENTS = ["a", "b:", ": ", "\n", "\n  ", "- ", "[", "]", "{", "}", ", ", "&x ", "*x", "<<: ", "'", '"', "# ", "|\n"]
_FRAGMENTS += ["> ", "? ", "---\n", "%YAML 1.1\n", "\t", "1", "0x", "0b_", "1:60", ".inf", "~", "!!int ", "!!bool "]
_FRAGMENTS += ["!!set ", "!!map ", "!!omap ", "!!float ", "!!timestamp ", "!!binary ", "!!str ", "!x ", "2001-02-30"]


@given(st.lists(st.sampled_from(_FRAGMENTS), max_size=12).map("".join))
def test_parse_yaml_of_yaml_like_text_raises_nothing_but_user_errors(text: str):
    _parse_or_user_error(text)


@given(street=st.text(), colour=st.text(), size=st.integers(), height=st.floats(allow_nan=False))
def test_dump_reads_back(street: str, colour: str, size: int, height: float):
    house = House(street=street, hall=Room(colour=colour, size=size, height=height))
    assert validate(House, parse_yaml(strict_yaml.dump(house), "doc"), "doc") == house


def test_dump_writes_no_aliases():
    room = Room(colour="red")
    text = strict_yaml.dump(House(street="Elm", hall=room, rooms=[room, room]))
    assert "&" not in text
    assert yaml.safe_load(text)["rooms"][1] == yaml.safe_load(text)["hall"]


def test_read_text_errors_name_the_problem(tmp_path: Path):
    with pytest.raises(UserError, match=r"recipe .* does not exist"):
        read_text(tmp_path / "none.yaml", "recipe")
    with pytest.raises(UserError, match="is a folder"):
        read_text(tmp_path, "recipe")
    (tmp_path / "latin").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match="cannot be read"):
        read_text(tmp_path / "latin", "recipe")


def test_path_with_a_null_character_is_a_user_error():
    with pytest.raises(UserError):
        read_text(Path("a\0b"), "constitution")


def test_read_text_removes_the_byte_order_mark(tmp_path: Path):
    (tmp_path / "bom").write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_text(tmp_path / "bom", "recipe") == "a: 1"
