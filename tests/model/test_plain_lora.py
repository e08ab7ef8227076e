"""Settings of LoRA adapters: each of PEFT's fields is supported, without effect, or refused by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import peft
import pytest

from selfalign.errors import UserError
from selfalign.model import plain_lora

PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}


def folder(path: Path, **settings: Any) -> Path:
    (path / "adapter_config.json").write_text(json.dumps({**PLAIN, **settings}))
    return path


def test_every_field_of_the_installed_peft_is_known():
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    known = [plain_lora.TERMS, plain_lora.NO_EFFECT, frozenset(plain_lora.PLAIN), plain_lora.UNSET]
    assert fields <= frozenset.union(*known), "a field of PEFT's LoraConfig is not classified"
    assert sum(map(len, known)) == len(frozenset.union(*known))


def test_the_defaults_of_peft_are_a_plain_lora(tmp_path: Path):
    peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]).save_pretrained(str(tmp_path))
    assert plain_lora.terms(tmp_path).r == 8
    assert plain_lora.uniform(tmp_path) == (8, 8)


@pytest.mark.parametrize("field", sorted(plain_lora.UNSET))
def test_fields_that_a_plain_lora_does_not_set_are_refused(field: str, tmp_path: Path):
    for value in (True, ["lm_head"], {"a": 1}):
        with pytest.raises(UserError, match=f"adapter_config.json: {field} is .*, which is no plain LoRA") as error:
            plain_lora.terms(folder(tmp_path, **{field: value}))
        assert "\n" not in str(error.value)
    for value in (None, False, [], {}):
        plain_lora.terms(folder(tmp_path, **{field: value}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peft_type", "IA3"),
        ("peft_type", ["LORA"]),
        ("task_type", "SEQ_CLS"),
        ("bias", "all"),
        ("bias", None),
        *(("init_lora_weights", v) for v in ("pissa", "pissa_niter_16", "OLoRA", "eva", "loftq", "corda", "mica", 1)),
        ("alora_invocation_tokens", [5, 6]),
        ("alora_invocation_tokens", []),
        ("a_field_of_tomorrow", "on"),
    ],
)
def test_other_kinds_of_adapters_are_refused_by_name(field: str, value: Any, tmp_path: Path):
    with pytest.raises(UserError, match=f"adapter_config.json: {field} is "):
        plain_lora.read(folder(tmp_path, **{field: value}))


@pytest.mark.parametrize("value", [True, False, None, "gaussian", "orthogonal"])
def test_initialisations_that_keep_the_base_are_accepted(value: Any, tmp_path: Path):
    plain_lora.read(folder(tmp_path, init_lora_weights=value, a_field_of_tomorrow=None))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", 0), ("r", True), ("r", 4.0), ("lora_alpha", 0), ("lora_alpha", "8"), ("target_modules", None),
        ("target_modules", ""), ("use_rslora", "yes"), ("rank_pattern", ["q_proj"]), ("alpha_pattern", {"q_proj": -1}),
        ("layers_to_transform", "all"),
    ],
)  # fmt: skip
def test_values_that_peft_cannot_use_are_refused_by_name(field: str, value: Any, tmp_path: Path):
    with pytest.raises(UserError, match=f"{field} is .*, which is not valid"):
        plain_lora.terms(folder(tmp_path, **{field: value}))


@pytest.mark.parametrize("setting", [{"use_rslora": True}, {"rank_pattern": {"q": 2}}, {"alpha_pattern": {"q": 2}}])
def test_different_scales_are_refused_where_one_is_needed(setting: dict[str, Any], tmp_path: Path):
    plain_lora.terms(folder(tmp_path, **setting))
    with pytest.raises(UserError, match=f"{next(iter(setting))} is set, but only one rank and alpha"):
        plain_lora.uniform(folder(tmp_path, **setting))
