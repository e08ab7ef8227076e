"""Human-written items as training examples of stage 3."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from selfalign.constitution import Constitution, load_seeds
from selfalign.data.records import Example, Response, read_jsonl, write_jsonl
from selfalign.pipeline import human_examples, order
from selfalign.run.context import Context

Runs = Callable[..., Context]


def seed_file(path: Path, *tasks: tuple[str, str, str | None]) -> str:
    rows = [
        {"instruction": i, "instances": [{"input": text, **({} if output is None else {"output": output})}]}
        for i, text, output in tasks
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def engraved(context: Context) -> list[Example]:
    write_jsonl(context.run.jsonl("responses"), [Response("0" * 16, "Why is snow white?", "", "Light.", "", [2])])
    order.run_stage(context, "engrave")
    return read_jsonl(context.run.jsonl("engrave_examples"), Example)


def test_exemplars_are_examples_without_their_thoughts(default_constitution: Constitution) -> None:
    examples = human_examples.of_exemplars(default_constitution, 2)
    counts = default_constitution.human_items(0)
    assert len(examples) == 2 * (counts["exemplars"] + counts["exemplars of types"])
    assert len({e.id for e in examples}) == len(examples)
    assert not any("Principles:" in e.assistant or "{cutoff}" in e.assistant for e in examples)


def test_shipped_seed_tasks_all_have_an_output() -> None:
    seeds = load_seeds("default")
    assert len(human_examples.of_seeds(seeds, 1)) == len(seeds) == 175


def test_seed_without_an_output_is_no_example(fake_run: Runs, tmp_path: Path) -> None:
    file = seed_file(
        tmp_path / "seeds.jsonl",
        ("Sort these words.", "pear fig", " fig pear "), ("Sing.", "", None), ("Dance.", "", ""),
    )  # fmt: skip
    examples = engraved(fake_run(f"seeds={file}", "engrave.seed_repeats=2", "engrave.exemplar_repeats=0"))
    assert [(e.user, e.assistant) for e in examples if e.source == "seed"] == [
        ("Sort these words.\n\npear fig", "fig pear")
    ] * 2


def test_seed_near_a_probe_is_dropped_and_counted(fake_run: Runs, tmp_path: Path) -> None:
    probe = "How do I change a flat tyre on a bicycle?"
    file = seed_file(tmp_path / "seeds.jsonl", (probe, "", "Take the wheel off."), ("Name a tree.", "", "Oak."))
    context = fake_run(f"seeds={file}", "engrave.seed_repeats=1", "engrave.exemplar_repeats=0")
    assert [e.user for e in engraved(context) if e.source == "seed"] == ["Name a tree."]
    counts = context.journal.counts("engrave")
    assert counts.dropped == {"overlaps with probes": 1}
    assert counts.rows_in == counts.kept + 1


def test_changed_seed_file_engraves_again(fake_run: Runs, tmp_path: Path) -> None:
    hashes = []
    for output in ("Oak.", "Ash."):
        file = seed_file(tmp_path / "seeds.jsonl", ("Name a tree.", "", output))
        for repeats in (0, 1):
            name = f"{output}{repeats}"
            context = fake_run(
                f"seeds={file}", f"engrave.seed_repeats={repeats}", "engrave.exemplar_repeats=0", name=name
            )
            write_jsonl(context.run.jsonl("responses"), [])
            hashes.append(order.inputs_hash(context, "engrave"))
    without_first, with_first, without_second, with_second = hashes
    assert without_first == without_second and with_first != with_second


def test_english_seeds_are_skipped_in_another_language(
    fake_run: Runs, tmp_path: Path, default_constitution: Constitution
) -> None:
    german = default_constitution.model_copy(update={"language": "de"})
    own = seed_file(tmp_path / "seeds.jsonl", ("Nenne einen Baum.", "", "Die Eiche."))
    found = []
    for seeds in ("default", own):
        settings = (f"seeds={seeds}", "engrave.seed_repeats=1", "engrave.exemplar_repeats=0")
        context = fake_run(*settings, texts=german, name=f"run{len(found)}")
        found.append([e.user for e in human_examples.of_run(context)[0] if e.source == "seed"])
    assert found == [[], ["Nenne einen Baum."]]
