"""Test user data: every row is read or refused with file and line, and files are never in memory."""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import random
import re
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from selfalign.data import formats, user_data
from selfalign.data.files import values
from selfalign.data.records import Prompt, prompt_id, read_jsonl
from selfalign.data.user_data import UserData, UserResponses, prompt_fields
from selfalign.errors import Resumable, UserError
from selfalign.pipeline.order import run_stage
from selfalign.run import recipe as recipes
from selfalign.run.context import Context
from selfalign.run.recipe import PromptsSettings

Runs = Callable[..., Context]
QUICK = recipes.load("quick").prompts


def given_file(file: Path, data: str | bytes) -> UserData:
    file.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
    return UserData(prompts(file))


def prompts(file: Path | str, sha256: str | None = None) -> PromptsSettings:
    return QUICK.model_copy(update={"file": str(file), "file_sha256": sha256})


def read(file: Path, data: str | bytes) -> list[tuple[str, str, str | None]]:
    return [(row.instruction, row.input, row.answer) for _, row in given_file(file, data)]


PAIRS = [("Sort", "b a", "a b"), ("Name a river.", "", "The Rhine.")]
ROWS = [{"instruction": a, "input": b, "output": c} for a, b, c in PAIRS]
SAME = {
    "a.jsonl": "\n".join(map(json.dumps, ROWS)),
    "b.ndjson": "\ufeff" + "\r\n\r\n".join(map(json.dumps, ROWS)) + "\r\n",
    "c.json": json.dumps(ROWS),
    "d.json": "\ufeff\n " + json.dumps(ROWS, indent=2).replace("\n", "\r\n") + "\n\n",
    "e.jsonl": json.dumps(ROWS),
    "f.json": "\n".join(map(json.dumps, ROWS)),
    "g.csv": 'instruction,input,output\nSort,b a,a b\n"Name a river.",,The Rhine.\n',
    "h.CSV": '\ufeffInstruction ; INPUT;output\r\nSort;b a;"a b"\r\n\r\nName a river.;;The Rhine.',
    "i.tsv": "output\tinstruction\tinput\na b\tSort\tb a\nThe Rhine.\tName a river.\t\n",
    "k.jsonlines": "\n".join(map(json.dumps, ROWS)),
    "l.txt": "\n\n" + "\n".join(map(json.dumps, ROWS)),
    "m": json.dumps(ROWS, indent=1),
    "n.csv": "\n".join(map(json.dumps, ROWS)),
    "o.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "p.jsonl": bz2.compress("\n".join(map(json.dumps, ROWS)).encode()),
    "q.csv.xz": lzma.compress(b"\xef\xbb\xbfinstruction,input,output\r\nSort,b a,a b\r\nName a river.,,The Rhine.\r\n"),
    "r.csv": "sep=;\r\ninstruction;input;output\r\nSort;b a;a b\r\nName a river.;;The Rhine.\r\n",
    "s.csv": "instruction|input|output\nSort|b a|a b\nName a river.||The Rhine.\n",
    "t.csv": '"instruction", "input", "output"\n"Sort", "b a", "a b"\n"Name a river.", "", "The Rhine."\n',
    "j.csv": "instruction\tinput\toutput\nSort\tb a\ta b\nName a river.\t\tThe Rhine.\n",
}


@pytest.mark.parametrize("name", SAME)
def test_all_file_types_yield_the_same_rows(tmp_path: Path, name: str):
    assert read(tmp_path / name, SAME[name]) == PAIRS


def test_zstd_is_read_or_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pa = pytest.importorskip("pyarrow")
    frames = b""
    for row in ROWS:  # a file may have several frames
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(json.dumps(row).encode() + b"\n")
        frames += sink.getvalue().to_pybytes()
    assert read(tmp_path / "a.jsonl.zst", frames) == PAIRS
    with pytest.raises(UserError, match=r"a\.jsonl\.zst' cannot be read: Truncated compressed stream"):
        read(tmp_path / "a.jsonl.zst", frames[:-9])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "compression", None)
    with pytest.raises(UserError, match=r"zstd, which needs pyarrow: pip install 'selfalign\[data\]', or unpack it"):
        read(tmp_path / "a.jsonl.zst", frames)


def test_parquet_is_recognized_by_its_content(tmp_path: Path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.data")
    assert [row.message for _, row in UserData(prompts(tmp_path / "a.data"))] == ["Sort\n\nb a", "Name a river."]


DAMAGED = gzip.compress(b'{"prompt": "Name a river."}' * 1000)
AMBIGUOUS = {
    "a.txt": {
        'Why?\n{"prompt": "a"}': "a.txt:2 is a JSON object between lines of text: save JSON lines as .jsonl",
        '{"instruction": "a"}\nWhy?': "a.txt:2 is not JSON",
        '{"colour": "red"}\nWhy?': "a.txt:1: unknown row format: the keys are 'colour'",
        "instruction,output\na,b": "a.txt:1 names the columns of a table: save the file as .csv or .tsv",
        "\nQuestion\tAnswer\na\tb": "a.txt:2 names the columns of a table",
        DAMAGED[:-20]: "a.txt is damaged: it cannot be decompressed .Compressed file ended before",
        DAMAGED[:30] + b"xxxx" + DAMAGED[34:]: "a.txt is damaged: it cannot be decompressed",
        b"PK\x03\x04" + b"\x00" * 40: "a.txt is a zip archive or a spreadsheet: unpack it, or save it as CSV",
        gzip.compress(DAMAGED): "a.txt is compressed twice: unpack it",
        gzip.compress(b"rows.jsonl".ljust(257, b"\0") + b"ustar"): "a.txt is a tar archive: unpack it",
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d\n": "a.txt only points to the data: run",
        "\n<!DOCTYPE html>\n<html>": "a.txt is a web page or XML: download the file itself",
        "%PDF-1.7\n1 0 obj": "a.txt is a PDF file",
        "Why?\nWho?".encode("utf-16-le"): "a.txt is a binary file, or UTF-16",
        "Why is it so?\rWho is it?\r": "a.txt:1 has line ends of carriage returns alone",
        '["Why?",\n5]': "a.txt:2 is not JSON .expected an object or a text",
    },
    "a.yaml": {
        "- instruction: Why?\n": "a.yaml is a .yaml file, not a prompt per line: save its rows as JSON lines or CSV"
    },
    "a.json": {
        '{\n  "prompt": "Why?"\n}': "a.json:1 is not JSON .*: write each object in one line, as `jq -c .` does",
        '{"instruction": ["Why?", "Who?"], "output": ["So.", "She."]}': "output are lists of 2: write a row",
    },
    "a.parquet.gz": {gzip.compress(b"PAR1" + b"\x00" * 40): "a.parquet.gz cannot be read as Parquet"},
}


@pytest.mark.parametrize(("name", "number"), [(name, n) for name in AMBIGUOUS for n in range(len(AMBIGUOUS[name]))])
def test_ambiguous_file_is_refused_in_one_line(tmp_path: Path, name: str, number: int):
    data, text = list(AMBIGUOUS[name].items())[number]
    with pytest.raises(UserError, match=text) as caught:
        read(tmp_path / name, data)
    assert "\n" not in str(caught.value)


def test_braces_and_brackets_in_prompts_are_text(tmp_path: Path):
    lines = ["{name} is a place: which?", "[Insert a name] is here.", '["a", "b"]: which is first?', "{", "a, b"]
    assert [row[0] for row in read(tmp_path / "a.txt", "\n".join(lines))] == lines
    assert [row[0] for row in read(tmp_path / "a", "\n".join(lines[2:]))] == lines[2:]


@pytest.mark.parametrize("name", ["a.json", "a.txt"])
def test_an_array_of_texts_is_prompts(tmp_path: Path, name: str):
    assert [row[0] for row in read(tmp_path / name, '["Why?",\n"Who \\"she\\"?"]')] == ["Why?", 'Who "she"?']


def test_a_prompt_may_begin_with_json(tmp_path: Path):
    lines = ['{"name": "Bob"}: how do I parse this?', "What is JSON?"]
    assert [row[0] for row in read(tmp_path / "a.txt", "\n".join(lines))] == lines


def test_columns_without_a_name_are_ignored(tmp_path: Path):
    data = given_file(tmp_path / "a.csv", ",prompt,completion,,\n0,Why?,So.,,\n")
    assert [(row.message, row.answer, row.unread) for _, row in data] == [("Why?", "So.", ())]


def test_unknown_suffix_is_read_as_lines(tmp_path: Path):
    text = '\ufeff  Why?\r\n\r\ninstruction,input\n{"a": 1}\n[1]\nlast\u2028line'
    assert [row[0] for row in read(tmp_path / "mine.txt", text)] == [
        "Why?", "instruction,input", '{"a": 1}', "[1]", "last\u2028line",
    ]  # fmt: skip


def test_a_row_of_empty_cells_is_a_row(tmp_path: Path):
    assert read(tmp_path / "a.csv", 'prompt,completion\n,\n\n" ",b\n') == [("", "", ""), (" ", "", "b")]


def test_rows_have_their_line_numbers(tmp_path: Path):
    lines = given_file(tmp_path / "a.jsonl", '\n{"prompt": "a"}\n\n{"prompt": "b"}')
    array = given_file(tmp_path / "a.json", '[\n{"prompt": "a\\n"},\n{"prompt":\n "b"}, {"prompt": "c"}]')
    table = given_file(tmp_path / "a.csv", 'prompt\n"a\nb"\n\nc\n')
    assert [[re.sub(".*:", "", place) for place, _ in data] for data in (lines, array, table)] == [
        ["2", "4"], ["2", "3", "4"], ["2", "5"],
    ]  # fmt: skip


REFUSED = {
    "a.jsonl": {
        '{"prompt": "a"}\n{"text": "b"}': "a.jsonl:2: unknown row format",
        '{"prompt": "a"}\nnonsense': "a.jsonl:2 is not JSON",
        '{"prompt": "a"}\n"b"': "a.jsonl:2 is not a JSON object",
        '{"prompt": "a", "x": ' + "[" * 100_000 + "]" * 100_000 + "}": "a.jsonl:1 is not JSON",
        '{"prompt": "a", "x": ' + "9" * 5000 + "}": "a.jsonl:1 is not JSON",
        b'{"prompt": "a"}\n{"prompt": "\xff"}': "a.jsonl:2 is not UTF-8",
        '{"prompt": "a"}'.encode("utf-16"): "a.jsonl is UTF-16: save it as UTF-8",
        "": "",
    },
    "a.json": {
        '[{"prompt": "a"},\n{"text": "b"}]': "a.json:2: unknown row format",
        '[{"prompt": "a"}\n{"prompt": "b"}]': "a.json:2 is not JSON .expected a comma or .",
        '[{"prompt": "a"},\n]': "a.json:2 is not JSON .trailing comma",
        '[{"prompt": "a"},\n5]': "a.json:2 is not JSON .expected an object",
        '[{"prompt": "a"}]\nmore': "a.json:2 is not JSON .text after",
        '[{"prompt": "a"},\n{"prompt": "b"': "a.json:2 is not JSON",
        '[{"prompt": "a"},\n{"prompt": "b\nc"}]': "a.json:2 is not JSON .Invalid control character",
        '[\n{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}]": "a.json:2 is not JSON",
        '[\n{"prompt": ' + "9" * 5000 + "}]": "a.json:2 is not JSON",
        b'[{"prompt": "a"},\n{"prompt": "\xff"}]': "a.json:2 is not UTF-8",
        "[": "a.json:1 is not JSON",
        "[]": "",
        '{\n"prompt": "a"\n}': "a.json:1 is not JSON",
    },
    "a.csv": {
        "text,label\na,b\n": "a.csv:2: unknown row format: the keys are 'text', 'label'",
        "label,kind\na,b\n": "a.csv:1: the header: unknown row format: the keys are 'label', 'kind'",
        "prompt,prompt\na,b\n": "a.csv:1: the header names 'prompt' twice",
        "\nprompt\na\n": "a.csv:1: the header: unknown row format",
        "prompt\na\nb, c\n": "a.csv:3: 2 cells, but the header names 1",
        "prompt,completion\na,b\nc\n": "a.csv:3: 1 cells, but the header names 2",
        'prompt\n"a"\n"b\nc\n': "a.csv:3 is not valid CSV .unexpected end",
        'prompt\na\n"b"c\n': "a.csv:3 is not valid CSV",
        "prompt\ra\rb": "a.csv:1 is not valid CSV",
        b"prompt\na\n\xff\n": "a.csv:3 is not UTF-8",
        "messages\n5\n": "a.csv:2: messages is '5', not a list of turns",
        "": "",
    },
    "a.tsv": {"prompt,completion\na,b\n": "a.tsv:1: the header: unknown row format"},
    "a.txt": {b"a\n\xff": "a.txt:2 is not UTF-8", "\n \n": ""},
}  # fmt: skip


@pytest.mark.parametrize(("name", "number"), [(name, n) for name in REFUSED for n in range(len(REFUSED[name]))])
def test_invalid_file_is_an_error_with_its_line(tmp_path: Path, name: str, number: int):
    data, message = list(REFUSED[name].items())[number]
    if not message:
        assert read(tmp_path / name, data) == []
        with pytest.raises(UserError, match=rf"^{re.escape(name)} contains no prompt$"):
            user_data.count_prompts(prompts(tmp_path / name))
        return
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path / name, data)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt"])
def test_a_line_of_five_megabytes_is_a_row(tmp_path: Path, name: str):
    long = "word " * 1_000_000 + "end"
    data = {
        "a.jsonl": json.dumps({"prompt": long}),
        "a.json": json.dumps([{"prompt": long}, {"prompt": "b"}]),
        "a.csv": f"prompt\n{long}\nb\n",
        "a.tsv": f"prompt\n{long}\nb\n",
        "a.txt": long,
    }[name]
    assert read(tmp_path / name, data)[0] == (long, "", None)


# -- ten thousand hostile files --------------------------------------------------------------------------------------

TEXTS: list[Any] = [
    "Name a river.", "", " ", "\x00", "\ufeff", "a\r\nb", "\u200b\u202e", "\x1b[2J", "<eos>", "<|im_end|>", "User: hi",
    "</script>", "=1+1", "../../etc/passwd", "\ud83d", "a,b;c\td", '"', "'", "\\", "{", "[", "\u2028", "漢字",
    "x" * 3000, None, True, 5, 1e999, float("nan"), 10**5000, [], {}, ["a"], {"role": "user", "content": "a"},
    "\n" * 9, "null",
]  # fmt: skip
NAMES = [*sorted(formats.KNOWN_KEYS), "text", "id", ""]


def hostile(rng: random.Random) -> tuple[str, bytes]:
    """Generate a file with any keys and values, sometimes truncated or with inserted bytes."""
    kind = rng.choice([".jsonl", ".json", ".csv", ".tsv", ".txt"])
    names = rng.sample(NAMES, rng.randint(1, 3)) if rng.random() < 0.4 else ["instruction", "output"]
    rows = [{name: rng.choice(TEXTS) for name in names} for _ in range(rng.randint(0, 4))]
    if kind in (".jsonl", ".json"):
        lines = [_json(row) for row in rows]
        text = "[" + ",\n".join(lines) + "]" if kind == ".json" else "\n".join(lines)
    elif kind == ".txt":
        text = "\n".join(_str(value) for row in rows for value in row.values())
    else:
        out = io.StringIO()
        quoting = rng.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL])
        table = csv.writer(out, delimiter="\t" if kind == ".tsv" else ",", quoting=quoting, lineterminator="\n")
        table.writerows([names, *([_str(value) for value in row.values()] for row in rows)])
        text = out.getvalue()
    data = text.replace("\n", rng.choice(["\n", "\n", "\r\n", "\n\n"])).encode("utf-8", "surrogatepass")
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        at = rng.randint(0, len(data))
        data = rng.choice(
            [data[:at], data[:at] + rng.randbytes(3) + data[at:], b"\xef\xbb\xbf" + data, data[:at] + b'"' + data[at:],
             gzip.compress(data), data[:at] + b"\x00" + data[at:], data[:at] + b"\n" + data[at:]]
        )  # fmt: skip
    return kind, data


def _str(value: Any) -> str:
    return "9" * 3000 if value == 10**5000 else str(value)


def _json(row: dict[str, Any]) -> str:
    if any(value == 10**5000 for value in row.values()):
        return '{"prompt": ' + "9" * 5000 + "}"
    return json.dumps(row)


def rows_in(kind: str, data: bytes) -> int | None:
    """Count the rows of the file independently; None if it is malformed."""
    try:
        text = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode("utf-8-sig")
        if kind in (".json", ".jsonl") and text.strip(" \t\r\n").startswith("["):
            results = json.loads(text)
            return len(results) if all(isinstance(row, dict) for row in results) else None
        if kind in (".csv", ".tsv"):
            table = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if kind == ".tsv" else ",", strict=True)
            return sum(bool(cells) for cells in table) - 1
    except (ValueError, csv.Error):
        return None
    return sum(bool(line.strip()) for line in text.split("\n"))


def check_hostile(folder: Path, number: int, seed: int) -> None:
    rng, accepted = random.Random(seed), 0
    for _ in range(number):
        kind, data = hostile(rng)
        file = folder / f"hostile{kind}"
        try:
            rows = read(file, data)
        except UserError as error:
            assert re.match(rf"{re.escape(str(file))}(:\d+| is )", str(error)), error
            continue
        accepted += 1
        expected = rows_in(kind, data)
        assert len(rows) == (max(0, expected) if expected is not None else None), (kind, data[:500])
    assert number * 0.2 < accepted < number * 0.8


def test_hostile_files_are_read_whole_or_refused_with_a_line(tmp_path: Path):
    check_hostile(tmp_path, 1000, 16)


@pytest.mark.slow
def test_ten_thousand_hostile_files(tmp_path: Path):
    check_hostile(tmp_path, 10_000, 17)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_a_large_file_is_never_in_memory(tmp_path: Path, name: str):
    file, text = tmp_path / name, "Explain this at length: " + "word " * 200
    with file.open("w") as out:
        out.write({"a.json": "[\n", "a.csv": "prompt\n"}.get(name, ""))
        for number in range(8_000):
            row = json.dumps({"prompt": f"{number} {text}"}) if "json" in name else f"{number} {text}"
            out.write(row + (",\n" if name == "a.json" and number < 7_999 else "\n"))
        out.write("]" if name == "a.json" else "")
    assert file.stat().st_size > 8e6
    tracemalloc.start()
    try:
        assert sum(1 for _ in values(file)) == 8_000
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


# -- what is noticed -------------------------------------------------------------------------------------------------

DIALOGUE = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]


def test_skipped_content_is_reported(tmp_path: Path):
    data = given_file(
        tmp_path / "mine.jsonl",
        json.dumps({"conversations": DIALOGUE, "system": "Be.", "id": 1, "lang": "en"})
        + "\n" + json.dumps({"instruction": "d", "context": "e", "response": "f"}),
    )  # fmt: skip
    assert len(list(data)) == len(list(data)) == 2
    assert data.messages() == [
        "mine.jsonl: read as ShareGPT 1, Dolly 1",
        "keys that are not read: id, lang",
        "dialogues read only up to the response to the first user turn: 1",
        "system texts replaced by the system prompts: 1",
    ]
    assert data.notes() == {
        "from": "mine.jsonl", "read as": {"ShareGPT": 1, "Dolly": 1}, "dialogues shortened": 1,
        "system texts left": 1,
    }  # fmt: skip


def test_stage_counts_all_rows_and_locates_empty_ones(fake_run: Runs, tmp_path: Path):
    rows = [
        {"messages": [{"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": "Name a river.\x00"}, {"role": "tool", "content": "7"}]},
        {"messages": [{"role": "user", "content": "Name a river."}, {"role": "assistant", "content": "\ud83d"}]},
        {"messages": [{"role": "user", "content": "Name a "}, {"role": "user", "content": "river."}]},
        {"prompt": "name a RIVER."},
        {"instruction": "Sort\u200b", "input": "b a\r\n", "output": "a b"},
        {"prompt": "Why?\nUser: because"},
    ]
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(rows, indent=1))
    context = fake_run(f"prompts.file={file}", "stages=[prompts]")
    run_stage(context, "prompts")
    counts = context.journal.counts("self_instruct")
    assert (counts.rows_in, counts.kept) == (7, 2)
    assert counts.dropped == {
        "empty": 1, "duplicate": 1, "contains a role marker": 1, "has a tool call": 1, "has a lone surrogate": 1,
    }  # fmt: skip
    assert counts.notes["read as"] == {"messages": 4, "prompts": 2, "Alpaca": 1}
    assert counts.notes["dialogues shortened"] == 1
    results = {(p.instruction, p.input) for p in read_jsonl(context.run.jsonl("prompts"), Prompt)}
    assert results == {("Name a\n\nriver.", ""), ("Sort", "b a")}
    assert next(d.text for d in context.journal.drops() if d.reason == "empty") == f"{file}:2"


def test_run_resumes_after_a_broken_row_is_corrected(fake_run: Runs, tmp_path: Path):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "Name a river."}\n{"prompt": 5}\n')
    context = fake_run(f"prompts.file={file}", "stages=[prompts]")
    with pytest.raises(UserError, match=r"mine\.jsonl:2: prompt is 5"):
        run_stage(context, "prompts")
    assert not context.run.jsonl("prompts").exists()
    file.write_text('{"prompt": "Name a river."}\n{"prompt": "Name a lake."}\n')
    run_stage(context, "prompts")
    assert context.journal.counts("self_instruct").kept == 2


# -- the recipe's file -----------------------------------------------------------------------------------------------


def test_file_is_pinned_by_its_sha256(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "a"}\n')
    digest = hashlib.sha256(b'{"prompt": "a"}\n').hexdigest()
    monkeypatch.chdir(tmp_path)
    results = recipes.located(recipes.load("quick"), Path("mine.jsonl")).prompts
    assert (results.file, results.file_sha256) == (str(tmp_path / "mine.jsonl"), digest)
    assert len(list(UserData(results))) == 1
    (tmp_path / "mine.jsonl").write_text('{"prompt": "b"}\n')
    with pytest.raises(UserError, match="has changed since the run was started: restore it, or start again with --new"):
        list(UserData(results))
    (tmp_path / "mine.jsonl").unlink()
    with pytest.raises(UserError, match=r"prompts file '.*mine\.jsonl' does not exist"):
        list(UserData(results))


ADDRESSES = {
    "https://huggingface.co/datasets/tatsu-lab/alpaca": "is an address: name the hub data set as tatsu-lab/alpaca$",
    "hf://datasets/tatsu-lab/alpaca/data": "is an address: name the hub data set as tatsu-lab/alpaca$",
    "s3://bucket/rows.jsonl": "is an address: download the file, and name that",
    "-": "is no regular file: rows are read several times, so save them in one",
    "/dev/null": "is no regular file",
    "~nobody-of-that-name/rows.jsonl": "does not exist",
}


@pytest.mark.parametrize("name", ADDRESSES)
def test_what_is_no_file_is_an_error_with_advice(name: str):
    for text in (name, str(Path(name))):
        with pytest.raises(UserError, match=ADDRESSES[name]):
            user_data.pin_source(text)


def test_home_is_expanded_in_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "a"}\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_data.pin_source("~/mine.jsonl")[0] == str(tmp_path / "mine.jsonl")


def test_recipe_without_a_file_is_an_error():
    with pytest.raises(UserError, match=r"has no prompts\.file"):
        UserData(QUICK)


def test_count_prompts_respects_the_row_limit(tmp_path: Path):
    (tmp_path / "a.txt").write_text("a\nb\nc\n")
    config = prompts(tmp_path / "a.txt")
    assert user_data.count_prompts(config) == 3
    assert user_data.count_prompts(config.model_copy(update={"rows": 2})) == 2


# -- answers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def answers(tmp_path: Path) -> Iterator[UserResponses]:
    rows = [
        {"instruction": " Sort\u200b", "input": "b a ", "output": None},
        {"instruction": "Sort", "input": "b a", "output": "a b\x00\r\nand\n\n\nmore  "},
        {"instruction": "Sort", "input": "b a", "output": "second"},
        {"instruction": "Say", "input": "", "output": ""},
    ]
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    created = UserResponses(prompts(tmp_path / "mine.json"))
    yield created
    created.close()


def test_responses_are_looked_up_by_prompt_id(answers: UserResponses):
    assert answers.get(prompt_id("Sort", "b a")) == "a b\nand\n\n\nmore  "
    assert answers.get(prompt_id("Say", "")) == ""
    assert answers.get(prompt_id("Sort", "")) is None


def test_input_alone_is_the_instruction(tmp_path: Path):
    data = given_file(tmp_path / "a.jsonl", '{"instruction": " \\u200b", "input": "Why? ", "output": "So."}')
    assert [prompt_fields(row) for _, row in data] == [(prompt_id("Why?", ""), "Why?", "")]


def test_prompt_fields_have_the_id_of_stage_1(fake_run: Runs, tmp_path: Path):
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"instruction": " Sort\u200b  \n\n\n\n it", "input": "b\x07 a ", "output": "a b"}))
    context = fake_run(f"prompts.file={file}", "stages=[prompts]")
    run_stage(context, "prompts")
    kept = next(iter(context.prompts()))
    assert (kept.id, kept.instruction, kept.input) == prompt_fields(next(row for _, row in UserData(prompts(file))))


def test_full_disk_for_user_responses_is_resumable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.jsonl").write_text("".join(
        json.dumps({"prompt": f"Prompt {n}", "completion": "word " * 200}) + "\n" for n in range(3000)
    ))  # fmt: skip
    real = user_data.sqlite3.connect

    def small(*args: Any, **more: Any) -> Any:
        created = real(*args, **more)
        created.execute("PRAGMA max_page_count=50")
        return created

    monkeypatch.setattr(user_data.sqlite3, "connect", small)
    with pytest.raises(Resumable, match="no space for temporary files"):
        UserResponses(prompts(tmp_path / "mine.jsonl"))
