"""Exports of trained models, tiny and real: each is loaded back by the library that others load it with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from selfalign import models
from selfalign import recipe as recipes
from selfalign.constitution import Constitution
from selfalign.context import Context
from selfalign.dialogue import encode_example
from selfalign.errors import UserError
from selfalign.export import compare, gguf_model, job
from selfalign.progress import Screen
from selfalign.recipe import Engrave
from selfalign.run import RunDir
from selfalign.training import gguf_adapter, lora


def trained_run(folder: Path, source: str, texts: Constitution, config: Engrave, epochs: int, rate: float) -> Context:
    """A run whose engraved model was trained for real on the identity pairs."""
    recipe = recipes.load("quick", [f"model={json.dumps(source)}", "engine.kind=llama_cpp", "engine.slots=1"])
    context = Context(RunDir.create(folder, recipe, texts), Screen(-1))
    model = models.resolve(source)
    tokenizer, system, label = model.tokenizer(), texts.inference_prompt("standard"), texts.assistant.name
    rows = [encode_example(tokenizer, model.template, system, p.question, p.answer, label) for p in texts.identity]
    adapted = lora.with_new_adapter(lora.load_base(model.folder()), config, seed=0)
    settings = {"batch_size": 4, "warmup_steps": 2, "seed": 0}
    lora.train(adapted, rows, learning_rate=rate, epochs=epochs, **settings)
    lora.save_adapter(adapted, context.run.adapter("engrave"), source, model.notice, "card")
    gguf_adapter.write(context.run.adapter("engrave"), model.folder(), context.run.adapter_gguf("engrave"), "")
    return context


TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TINY = Engrave(rank=4, alpha=8, dropout=0.0, targets=TARGETS)  # type: ignore[arg-type]
FAMILIES = {
    "llama, plain turns": ("llama", "plain", True),
    "llama, role tokens, no start token": ("llama", "chatml", False),
    "gemma3, plain turns": ("gemma3", "plain", True),
}


@pytest.fixture(scope="module", params=FAMILIES)
def context(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, default_constitution: Constitution
) -> Iterator[Context]:
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFALIGN_CACHE", str(folder / "cache"))
        source = tiny_models.write(folder / "base", *FAMILIES[request.param])
        made = trained_run(folder / "run", str(source), default_constitution, TINY, epochs=4, rate=0.02)
        yield made
        made.journal.close()


def record(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / job.RECORD).read_text()))


@pytest.mark.parametrize(("form", "kind"), [(f, k) for f, ks in job.TYPES.items() for k in ks or ("",)])
def test_every_form_holds(context: Context, form: str, kind: str) -> None:
    folder = job.export(context, form, kind=kind)
    print(record(folder)["comparison"]["text"])
    said = record(folder)
    assert said["holds"]
