"""Test the viewer's routes: access, rows, prompts, tokens, marks, feedback, comparison."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

pytest.importorskip("starlette", reason="starlette is not installed")

import viewer_runs
from selfalign.errors import UserError
from selfalign.generation.loop import RawOutput
from selfalign.model.dialogue import PLAIN, Encoded, Tokenizer, encode_example
from selfalign.run import feedback, marks
from selfalign.run.directory import RunDir
from selfalign.run.journal import Journal
from selfalign.web.guard import HEADERS, Guard, Policy
from selfalign.web.view.index import Index
from selfalign.web.view.routes import STATIC_FILES, Viewer, build
from selfalign.web.view.row_detail import split_tokens

TOKEN = "a token of 24 characters"
NO_TOKEN = Policy()
API = ("run", "progress", "rows", "counts", "row", "prompt", "tokens", "compare", "differences")
ROUTES = ["/", *(f"/static/{name}" for name in STATIC_FILES), *(f"/api/{name}" for name in API)]


def send_request(
    app: Guard, path: str, query: dict[str, str] | None = None, method: str = "GET", body: bytes = b"", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Send a request, and return (status, headers, body). The default host is this machine."""
    all_headers = {"host": "127.0.0.1:8010", **{k.replace("_", "-"): v for k, v in headers.items()}}
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
        "raw_path": path.encode(), "query_string": urlencode(query or {}).encode(), "root_path": "", "scheme": "http",
        "headers": [(k.encode(), v.encode()) for k, v in all_headers.items()], "server": ("127.0.0.1", 8010),
        "client": ("127.0.0.1", 5000),
    }  # fmt: skip
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    received = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    return sent[0]["status"], received, b"".join(m.get("body", b"") for m in sent[1:])


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Viewer:
    run = viewer_runs.make(tmp_path_factory.mktemp("viewer") / "run", 30)
    index = Index(run.path, run.constitution, run.view)
    index.refresh()
    return Viewer(index, index)


def get_json(viewer: Viewer, name: str, **query: str) -> Any:
    status, _, body = send_request(build(viewer, Policy()), f"/api/{name}", query)
    assert status == 200, body
    return json.loads(body)


# -- access ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ROUTES)
def test_every_route_checks_the_token(viewer: Viewer, path: str):
    app = build(viewer, Policy(token=TOKEN))
    row = {"stage": "align", "id": viewer.page({"stage": "align"})["rows"][0]["id"]}
    assert send_request(app, path, row)[0] == 401
    assert send_request(app, path, row, authorization="Bearer wrong wrong wrong wrong")[0] == 401
    assert send_request(app, path, row, cookie="selfalign-8010=wrong")[0] == 401
    status, headers, _ = send_request(app, path, row, authorization=f"Bearer {TOKEN}")
    assert status in ((200, 404) if path == "/api/tokens" else (200,))  # the fake engine has no tokens
    assert HEADERS.items() <= headers.items()
    assert send_request(build(viewer, Policy()), path, row)[0] == status


@pytest.mark.parametrize("path", ROUTES)
def test_every_route_checks_host_and_origin(viewer: Viewer, path: str):
    app = build(viewer, Policy())
    for host in ("evil.example", "evil.example:8010", "127.0.0.1.evil.example", "10.0.0.1", "", "localhost@evil"):
        assert send_request(app, path, host=host)[0] == 421, host
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9999", "https://localhost.evil.example"):
        assert send_request(app, path, origin=origin)[0] == 403, origin
    assert send_request(app, path, sec_fetch_site="cross-site", sec_fetch_mode="no-cors")[0] == 403
    assert send_request(app, path, host="localhost:1234")[0] in (200, 404)


@pytest.mark.parametrize("path", ["/api", "/api/", "/api/rows/", "/view.sqlite", "/static/../index.py", "/static/",
                                  "/x", "/static/%2e%2e/index.py", "//etc/passwd", "/static/view.html"])  # fmt: skip
def test_unknown_paths_are_not_found(viewer: Viewer, path: str):
    assert send_request(build(viewer, Policy()), path)[0] == 404


def test_other_methods_are_refused(viewer: Viewer):
    for path in ROUTES:
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            assert send_request(build(viewer, Policy()), path, method=method)[0] == 405, (path, method)


# -- responses ------------------------------------------------------------------------------------------------------


def test_pages_contain_every_row_once(viewer: Viewer):
    seen: list[str] = []
    at: dict[str, str] = {}
    while page := get_json(viewer, "rows", limit="7", **at)["rows"]:
        seen += [f"{r['stage']} {r['id']}" for r in page]
        at = {"at": f"{page[-1]['place']}.{page[-1]['n']}"}
    assert len(seen) == len(set(seen)) == get_json(viewer, "counts")["total"] == 30 + 30 + 25


@pytest.mark.parametrize(
    "query", [{"limit": "x"}, {"at": "x"}, {"at": "1"}, {"principle": "../etc"}, {"principle": ""}, {"limit": ""}]
)
def test_malformed_numbers_are_refused(viewer: Viewer, query: dict[str, str]):
    status, _, body = send_request(build(viewer, Policy()), "/api/rows", query)
    assert (status, json.loads(body)) == (400, {"error": "at, limit and principle must be numbers"})


@pytest.mark.parametrize("words", ["answer\0", "\0answer x", '"answer\0', "天气 " * 2000, "a " * 5000, '" ' * 999])
def test_odd_searches_are_answered(viewer: Viewer, words: str):
    for name in ("rows", "counts"):
        get_json(viewer, name, words=words)
    assert get_json(viewer, "counts", words="answer\0")["total"] > 0


@pytest.mark.parametrize("name", ["row", "prompt", "tokens"])
@pytest.mark.parametrize(
    "query", [{}, {"stage": "align"}, {"stage": "align", "id": "../../etc/passwd"}, {"stage": "'", "id": "'"}]
)
def test_unknown_rows_are_not_found(viewer: Viewer, name: str, query: dict[str, str]):
    assert send_request(build(viewer, Policy()), f"/api/{name}", query)[0] == 404


def test_row_shows_its_path_through_the_stages(viewer: Viewer):
    row = get_json(viewer, "rows", stage="engrave")["rows"][3]
    result = get_json(viewer, "row", stage="engrave", id=row["id"])
    assert [s["stage"] for s in result["steps"]] == ["self_instruct", "align", "engrave"]
    start, align, example = result["steps"]
    assert align["message"] == start["message"] == example["message"]
    assert align["answer"] == example["answer"] and align["thoughts"] and align["principles"]
    assert align["ledger"].endswith(align["answer"])


def test_progress_equals_the_ledgers(tmp_path: Path):
    run = viewer_runs.make(tmp_path / "run", 21)
    journal = Journal(run.path / "journal.sqlite")
    journal.ledger("verbose_responses", 12)
    number = journal.begin_session("verbose_responses", 4)
    journal.begin("verbose_responses", [(f"k{n}", f"{n:016x}") for n in range(8)])
    journal.progress(saved=[RawOutput(f"k{n}", "[]", 1, 1, 1, 0.1) for n in range(5)], session=(number, 10.0, 20.0))
    journal.record("verbose_responses", [(f"{n:016x}", n, "kept", "", "q\na") for n in range(4)])
    index = Index(run.path, run.constitution, run.view)
    index.refresh()
    now = Viewer(index).progress({})
    ledgers = {s["stage"]: s for s in now["stages"]}
    assert list(ledgers) == ["self_instruct", "align", "engrave", "verbose_responses"]
    verbose = ledgers["verbose_responses"]
    assert (verbose["decided"], verbose["rows_in"], verbose["answered"], verbose["open"]) == (4, 12, 5, 3)
    assert not verbose["finished"] and verbose["busy"] == 0.5
    for stage in ("self_instruct", "align", "engrave"):
        counts = journal.counts(stage)
        assert (ledgers[stage]["kept"], ledgers[stage]["dropped"]) == (counts.kept, counts.dropped)
        assert ledgers[stage]["finished"]
    assert now["state"] == "stopped"
    assert now["funnel"][0]["title"] == "seed tasks"
    journal.close()


def test_viewing_does_not_block_a_working_run(tmp_path: Path):
    run = viewer_runs.make(tmp_path / "run", 21)
    journal = Journal(run.path / "journal.sqlite")
    index = Index(run.path, run.constitution, run.view)
    with journal.transaction():  # the run writes all the time
        index.refresh()
        assert Viewer(index).progress({})["stages"]
        journal._db.execute("UPDATE stages SET seconds = 99 WHERE stage = 'align'")
    assert journal.counts("align").seconds == 99
    journal.close()


# -- prompts and tokens ----------------------------------------------------------------------------------------------


def test_exact_prompts_equal_the_engines_and_are_proved(fake_run: Any):
    """In a run with the fake engine, every request is in the journal and equals the engine's input."""
    from selfalign.pipeline import order

    sizes = [f"prompts.{k}.count=6" for k in ("self_instruct", "red_team")]
    context = fake_run(
        "stages=[prompts, align, engrave, verbose_cloning, evaluate]",
        *sizes,
        "verbose_cloning.prompts=5",
        "evaluate.heldout_prompts=4",
    )
    heard: list[str] = []
    generate = context.engine().generate

    def listening(prompt: Any, *arguments: Any) -> Any:
        heard.append("".join(prompt))
        return generate(prompt, *arguments)

    context.engine().generate = listening
    order.run_all(context)
    index = Index(context.run.path, context.run.constitution, context.run.view)
    index.refresh()
    viewer = Viewer(index)
    proved = 0
    for stage in ("align", "verbose_responses", "evaluate"):
        for row in viewer.page({"stage": stage, "limit": "100"})["rows"]:
            result = viewer.prompt({"stage": stage, "id": row["id"]})
            assert result["proved"], (stage, row)
            text = "".join(text for kind, text in result["parts"] if kind in ("text", "control")).removeprefix(
                "⟨start⟩"
            )
            assert f"<bos>{text}" in heard
            proved += 1
    assert proved > 20


def test_prompt_of_a_later_sample_is_that_samples(fake_run: Any):
    from selfalign.data.records import Response, read_jsonl
    from selfalign.pipeline import order

    sizes = ("prompts.self_instruct.count=8", "prompts.red_team.count=8", "align.max_new_tokens=40")
    context = fake_run("stages=[prompts, align]", *sizes)
    order.run_all(context)
    assert context.journal.counts("align").generation.requests > 16  # some responses are cut, and asked for again
    index = Index(context.run.path, context.run.constitution, context.run.view)
    index.refresh()
    for response in read_jsonl(context.run.jsonl("responses"), Response):
        shown = Viewer(index).prompt({"stage": "align", "id": response.id})
        assert shown["proved"] and shown["parts"][-1][1].strip() == response.response
    several: dict[str, list[Any]] = {}
    for outcome in context.journal.candidates("align"):
        several.setdefault(outcome.id, []).append(outcome)
    assert several
    for row_id, outcomes in several.items():
        (step,) = (s for s in Viewer(index).row({"stage": "align", "id": row_id})["steps"] if s["stage"] == "align")
        names = ("sample", "state", "reason", "score")
        assert [[c[n] for n in names] for c in step["candidates"]] == [list(o[1:]) for o in outcomes]
        assert all(c["thoughts"] and c["answer"] for c in step["candidates"])
        kept = [c["answer"] for c in step["candidates"] if c["state"] == "kept"]
        assert kept == ([step["answer"]] if step["state"] == "kept" else [])


def test_journals_of_older_versions_have_no_candidates(tmp_path: Path):
    run = viewer_runs.make(tmp_path / "run", 3)
    with closing(sqlite3.connect(run.path / "journal.sqlite")) as db:
        db.execute("DROP TABLE candidates")
    index = Index(run.path, run.constitution, run.view)
    index.refresh()
    row = Viewer(index).page({"stage": "align"})["rows"][1]
    assert [s["candidates"] for s in Viewer(index).row({"stage": "align", "id": row["id"]})["steps"]] == [[], [], []]


def test_prompt_without_journal_entry_is_not_proved(viewer: Viewer):
    row = viewer.page({"stage": "align"})["rows"][0]
    result = viewer.prompt({"stage": "align", "id": row["id"]})
    assert not result["proved"] and result["parts"]


@pytest.mark.parametrize("text", ["I can.", "naïve café 🦔🏽 天気", "a\nb  c\t\x00\u202e", "<eos> User: x", "🦔" * 9])
def test_split_tokens_add_up_to_the_row(tmp_path: Path, text: str):
    from conftest import byte_tokenizer

    tokenizer = Tokenizer(str(byte_tokenizer(tmp_path)), "<bos>")
    row = encode_example(tokenizer, PLAIN, "Be good.", f"Say {text}", text, "Alma")
    result = split_tokens(row, tokenizer)
    assert [i for _, ids, _ in result for i in ids] == row.ids
    assert [learnt for _, ids, learnt in result for _ in ids] == row.mask
    assert "".join(t for t, _, _ in result) == tokenizer.text(row.ids)
    assert result[-1][0] == "<eos>" and result[-1][2] and not result[0][2]


def test_tokens_equal_those_of_training(tiny_run: Any):
    from selfalign.data.records import Example, write_jsonl
    from selfalign.pipeline import adapter_training

    context = tiny_run(answers=5)
    run: RunDir = context.run
    examples = [Example(f"{n:016x}", "standard", f"What is {n}?", f"It is {n}.", "red_team") for n in range(5)]
    write_jsonl(run.jsonl("engrave_examples"), examples)
    run.journal.record("engrave", [(e.id, n, "kept", "", e.user) for n, e in enumerate(examples)])
    run.journal.finish("engrave", 5, 1.0)
    index = Index(run.path, run.constitution, run.view)
    index.refresh()
    viewer = Viewer(index)
    for row, encoded in zip(
        viewer.page({"stage": "engrave"})["rows"], adapter_training.rows(context, "engrave"), strict=True
    ):
        result = viewer.tokens({"stage": "engrave", "id": row["id"]})
        again = Encoded(
            [i for _, ids, _ in result["tokens"] for i in ids], [m for _, ids, m in result["tokens"] for _ in ids]
        )
        assert again == encoded
        assert (result["trained"], result["all"]) == (sum(encoded.mask), len(encoded.ids))


def test_rows_that_are_not_trained_on_have_no_tokens(viewer: Viewer):
    dropped = viewer.page({"stage": "align", "state": "dropped"})["rows"][0]
    heldout = viewer.page({"stage": "align", "state": "kept", "split": "heldout"})["rows"][0]
    for row, why in ((dropped, "not trained on"), (heldout, "held out")):
        with pytest.raises(UserError, match=why):
            viewer.tokens({"stage": "align", "id": row["id"]})


def test_viewer_refuses_a_folder_without_a_run(tmp_path: Path):
    from selfalign.cli.web import view

    with pytest.raises(UserError, match="is not a run"):
        view(tmp_path, port=0)
    viewer_runs.make(tmp_path / "run", 3)
    with pytest.raises(UserError, match="other machines can reach"):
        view(tmp_path / "run", host="0.0.0.0", port=0)


# -- marks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def marked(tmp_path: Path) -> Viewer:
    run = viewer_runs.make(tmp_path / "run", 30)
    index = Index(run.path, run.constitution, run.view)
    index.refresh()
    return Viewer(index)


def post_mark(
    viewer: Viewer, policy: Policy = NO_TOKEN, kind: str = "application/json", **fields: str
) -> tuple[int, Any]:
    body = json.dumps(fields).encode()
    headers = {"content_type": kind, "content_length": str(len(body))}
    status, _, received = send_request(build(viewer, policy), "/api/mark", None, "POST", body, **headers)
    return status, json.loads(received)


def test_row_is_marked_edited_and_unmarked(marked: Viewer):
    row = marked.page({"stage": "engrave"})["rows"][2]
    file = marked.run.jsonl("marks")
    row_key = {"stage": "align", "id": row["id"]}
    status, result = post_mark(marked, **row_key, mark="drop")
    assert status == 200 and {s["mark"] for s in result["steps"] if s["stage"] != "self_instruct"} == {"drop"}
    assert [json.loads(line)["mark"] for line in file.read_text().splitlines()] == ["drop"]
    assert marked.counts({"mark": "drop"})["total"] == 2  # the answer and its example
    assert marked.counts({})["by"]["mark"] == [["drop", 2]]
    assert [r["mark"] for r in marked.page({"mark": "drop"})["rows"]] == ["drop", "drop"]
    post_mark(marked, **row_key, mark="edit", answer=" Edited text. ")
    assert marks.read(marked.run)["engrave", row["id"]].answer == "Edited text."
    assert [s["edited"] for s in marked.row(row_key)["steps"]][1:] == ["Edited text."] * 2
    answer = next(s["answer"] for s in marked.row(row_key)["steps"] if s["stage"] == "align")
    post_mark(marked, **row_key, mark="edit", answer=answer)  # an unchanged text is no edit
    assert marks.read(marked.run) == {}
    post_mark(marked, **row_key, mark="drop")
    post_mark(marked, **row_key, mark="")
    assert marks.read(marked.run) == {} and marked.counts({"mark": "drop"})["total"] == 0


def test_marks_can_change_after_training(fake_run: Any):
    from selfalign.data.records import Response, write_jsonl
    from selfalign.pipeline import order

    context = fake_run("stages=[engrave]")
    run: RunDir = context.run
    rows = [Response(f"{n:016x}", f"What is {n}?", "", f"It is {n}.") for n in range(3)]
    write_jsonl(run.jsonl("responses"), rows)
    run.journal.record("align", [(r.id, n, "kept", "", f"{r.message}\n{r.response}") for n, r in enumerate(rows)])
    run.journal.finish("align", 3, 1.0)
    index = Index(run.path, run.constitution, run.view)
    index.refresh()
    viewer = Viewer(index)
    post_mark(viewer, stage="align", id=rows[0].id, mark="drop")
    post_mark(viewer, stage="align", id=rows[1].id, mark="edit", answer="One.")
    order.run_stage(context, "engrave")
    index.refresh()
    assert viewer.counts({"stage": "engrave", "reason": marks.DROPPED_MANUALLY})["total"] == 1
    gone, edited = ({"stage": "engrave", "id": r.id} for r in rows[:2])
    assert viewer.row(edited)["steps"][-1]["answer"] == "One."
    post_mark(viewer, **edited, mark="edit", answer="One.")  # an unchanged edit stays
    assert marks.read(run)["engrave", rows[1].id].answer == "One."
    assert post_mark(viewer, **gone, mark="")[0] == 200
    post_mark(viewer, **edited, mark="edit", answer="It is 1.")
    assert marks.read(run) == {}
    order.run_stage(context, "engrave")
    index.refresh()
    assert {r["answer"] for r in viewer.page({"stage": "engrave", "words": "It"})["rows"]} >= {"It is 0.", "It is 1."}


def test_only_trained_rows_can_be_marked(marked: Viewer):
    rows = [
        marked.page({"stage": "self_instruct"})["rows"][0],
        marked.page({"stage": "align", "state": "dropped"})["rows"][0],
        marked.page({"stage": "align", "split": "heldout", "state": "kept"})["rows"][0],
    ]
    good = marked.page({"stage": "engrave"})["rows"][0]
    for row in rows:
        assert post_mark(marked, stage=row["stage"], id=row["id"], mark="drop")[0] == 404
    assert post_mark(marked, stage="engrave", id=good["id"], mark="edit", answer=" ")[0] == 404
    assert post_mark(marked, stage="engrave", id=good["id"], mark="keep")[0] == 404
    assert post_mark(marked, stage="engrave", id="../../x", mark="drop")[0] == 404
    assert not marked.run.jsonl("marks").exists()


@pytest.mark.parametrize(
    ("path", "file", "fields"),
    [("/api/mark", "marks", {"mark": "drop"}), ("/api/feedback", "feedback", {"stage": "align", "verdict": "bad"})],
)
def test_marks_and_feedback_only_from_the_page(marked: Viewer, path: str, file: str, fields: dict[str, str]):
    row = marked.page({"stage": "engrave"})["rows"][0]
    row_key = {"stage": "engrave", "id": row["id"], **fields}
    body = json.dumps(row_key).encode()
    app = build(marked, Policy(token=TOKEN))
    plain = {"content_type": "application/json", "content_length": str(len(body))}
    assert send_request(app, path, None, "POST", body, **plain)[0] == 401
    signed = {**plain, "authorization": f"Bearer {TOKEN}"}
    assert send_request(app, path, None, "POST", body, **signed, origin="http://evil.example")[0] == 403
    assert send_request(app, path, None, "POST", body, **{**signed, "host": "evil.example"})[0] == 421
    assert send_request(app, path, None, "POST", body, **{**signed, "content_type": "text/plain"})[0] == 415
    assert send_request(app, path, None, "GET", b"", **signed)[0] == 405
    for bad in (b"", b"[1]", b"{", b'{"id": "\\ud83d"}', b"[" * 100_000):
        assert send_request(app, path, None, "POST", bad, **{**signed, "content_length": str(len(bad))})[0] == 400
    assert not marked.run.jsonl(file).exists()
    assert send_request(app, path, None, "POST", body, **signed)[0] == 200
    assert marked.run.jsonl(file).exists()


# -- feedback --------------------------------------------------------------------------------------------------------


def post_feedback(viewer: Viewer, **fields: str) -> tuple[int, Any]:
    body = json.dumps(fields).encode()
    headers = {"content_type": "application/json", "content_length": str(len(body))}
    status, _, received = send_request(build(viewer, NO_TOKEN), "/api/feedback", None, "POST", body, **headers)
    return status, json.loads(received)


def test_feedback_and_marks_are_independent(marked: Viewer):
    row = marked.page({"stage": "engrave"})["rows"][2]
    row_key = {"stage": "align", "id": row["id"]}
    status, result = post_feedback(marked, **row_key, verdict="bad", note="no <b>source</b>")
    assert status == 200
    assert {s["stage"]: s["feedback"] for s in result["steps"]} == {
        "self_instruct": {}, "align": {"verdict": "bad", "note": "no <b>source</b>"}, "engrave": {},
    }  # fmt: skip
    (entry,) = feedback.read(marked.run).values()
    align = next(s for s in result["steps"] if s["stage"] == "align")
    assert (entry.message, entry.answer, list(entry.principles)) == (
        align["message"],
        align["answer"],
        align["principles"],
    )
    assert (entry.model, entry.prompt, entry.source, entry.stage, entry.row) == (
        "prompted-base", "constitution", "view", "align", row["id"],
    )  # fmt: skip
    assert dict(entry.settings)["temperature"] == marked.run.recipe.align.temperature
    assert not marked.run.jsonl("marks").exists()  # training ignores feedback
    post_mark(marked, **row_key, mark="drop")
    assert post_feedback(marked, **row_key, verdict="good")[0] == 200
    assert [m.verdict for m in feedback.read(marked.run).values()] == ["good"]
    assert post_feedback(marked, **row_key, verdict="")[1]["steps"][1]["feedback"] == {}
    assert feedback.read(marked.run) == {} and len(marks.read(marked.run)) == 1


def test_feedback_needs_a_response_and_survives_a_malformed_file(marked: Viewer):
    for stage in ("self_instruct", "engrave"):
        row = marked.page({"stage": stage})["rows"][0]
        assert post_feedback(marked, stage=stage, id=row["id"], verdict="bad")[0] == 404
    row = marked.page({"stage": "align", "state": "kept"})["rows"][0]
    row_key = {"stage": "align", "id": row["id"]}
    assert post_feedback(marked, **row_key, verdict="fine")[0] == 404
    assert post_feedback(marked, **row_key, verdict="bad", note="x" * 2001)[0] == 404
    assert post_feedback(marked, stage="align", id="../../etc/passwd", verdict="bad")[0] == 404
    marked.run.jsonl("feedback").write_text("{}\n", "utf-8")
    assert "feedback.jsonl:1" in marked.row(row_key)["steps"][0]["feedback"]["error"]
    assert post_feedback(marked, **row_key, verdict="bad")[0] == 404
    assert marked.run.jsonl("feedback").read_text("utf-8") == "{}\n"


def test_concurrent_viewers_keep_all_marks(tmp_path: Path):
    run = viewer_runs.make(tmp_path / "run", 30)
    index = Index(run.path, run.constitution, run.view)
    index.refresh()
    viewers = [Viewer(Index(run.path, run.constitution, run.view)) for _ in range(2)]
    ids = [row["id"] for row in viewers[0].page({"stage": "engrave", "split": "train", "limit": "20"})["rows"]]
    for viewer in viewers:
        viewer.index.refresh = lambda: None  # type: ignore[method-assign]  # only the marks matter here

    def mark(number: int) -> None:
        for row_id in ids[number::2]:
            viewers[number].rows.mark("engrave", row_id, "drop")

    threads = [threading.Thread(target=mark, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key for _, key in marks.read(run)} == set(ids)


# -- deleted files ----------------------------------------------------------------------------------------------------


def test_index_may_be_deleted_while_in_use(marked: Viewer):
    row = marked.page({"stage": "engrave"})["rows"][0]
    total = get_json(marked, "counts")["total"]
    marked.index.path.unlink()  # its -wal stays, as after `rm view.sqlite`
    assert send_request(build(marked, Policy()), "/api/rows")[0] == 200
    marked.index.refresh()
    assert get_json(marked, "counts")["total"] == total
    marked.index.path.unlink()
    assert post_mark(marked, stage="engrave", id=row["id"], mark="drop")[0] in (200, 404)
    marked.index.refresh()
    assert get_json(marked, "row", stage="engrave", id=row["id"])["steps"]


def test_deleted_run_is_reported(marked: Viewer):
    shutil.rmtree(marked.run.path)
    for name in ("rows", "counts", "progress"):
        status, _, body = send_request(build(marked, Policy()), f"/api/{name}")
        assert (status, "was deleted" in json.loads(body)["error"]) == (404, True), name
    marked.index._try_refresh()
    assert "was deleted" in marked.index.error


def test_unreadable_journal_is_reported(marked: Viewer):
    (marked.run.path / "journal.sqlite").unlink()
    status, _, body = send_request(build(marked, Policy()), "/api/progress")
    assert (status, "cannot be read or written now" in json.loads(body)["error"]) == (503, True)
    assert send_request(build(marked, Policy()), "/api/rows")[0] == 200


# -- two runs --------------------------------------------------------------------------------------------------------


def test_comparison_of_two_runs(tmp_path: Path):
    def other(number: int, field: str) -> str:
        text = viewer_runs.default_text(number, field)
        return f"{text} but not the same" if field == "answer" and number % 4 == 0 else text

    runs = [viewer_runs.make(tmp_path / "a", 30), viewer_runs.make(tmp_path / "b", 42, other)]
    indices = [Index(run.path, run.constitution, run.view) for run in runs]
    for index in indices:
        index.refresh()
    viewer = Viewer(*indices)
    result = viewer.compare({})
    counts = {row["stage"]: row for row in result["rows"]}
    differ = [n for n in range(30) if n % 4 == 0 and n % 7]  # of those that were kept
    assert counts["align"] == {
        "stage": "align", "equal": 30 - len(differ), "differ": len(differ), "here": 0, "there": 12
    }  # fmt: skip
    assert (counts["self_instruct"]["differ"], counts["self_instruct"]["equal"]) == (0, 30)
    assert [s["rows_in"] for s in result["here"]] != [s["rows_in"] for s in result["there"]]
    rows: list[Any] = []
    at: dict[str, str] = {}
    while page := viewer.differences({"stage": "align", "which": "differ", "limit": "4", **at})["rows"]:
        rows += page
        at = {"at": f"{page[-1]['place']}.{page[-1]['n']}"}
    assert len(rows) == len(differ)
    for row in rows:
        assert row["here"]["id"] == row["there"]["id"] and row["here"]["message"] == row["there"]["message"]
        assert row["there"]["answer"] == row["here"]["answer"] + " but not the same"
    there = viewer.differences({"stage": "align", "which": "there"})["rows"]
    assert len(there) == 12 and all("here" not in row for row in there)
    turned = Viewer(*indices[::-1]).compare({})
    assert {r["stage"]: (r["there"], r["here"]) for r in turned["rows"]} == {
        stage: (r["here"], r["there"]) for stage, r in counts.items()
    }
    with pytest.raises(UserError):
        viewer.differences({"stage": "align", "which": "; DROP TABLE rows"})
    with pytest.raises(UserError, match="no other run"):
        Viewer(indices[0]).compare({})
