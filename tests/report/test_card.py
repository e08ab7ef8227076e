"""Model cards: whatever the texts in them say, they stay texts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from selfalign.constitution import Constitution
from selfalign.model.base_model import Model
from selfalign.model.dialogue import plain
from selfalign.report import model_card
from selfalign.run.ledger import Generation, StageCounts

HOSTILE = [
    "<script>alert(1)</script>", "[click](javascript:alert(1))", "![x](http://evil.example/p.png)", "| a | b |",
    "# Heading", "- item", "1. item", "`code`", "**bold** _em_", "\n\n## New section\n", "---\nlicense: mit\n---",
    "&lt;", "$$x$$", "\x1b[2J", "~~gone~~", "```\nfence", "\u202eevil",
]  # fmt: skip


class Base(Model):
    template = plain("<eos>")  # type: ignore[assignment]


def base(source: str = "owner/name", notice: str = "Terms.") -> Model:
    return Base(source, "0123", None, None, notice)


@given(st.lists(st.sampled_from([*HOSTILE, "word ", " "]), min_size=1, max_size=5).map("".join))
def test_a_text_never_becomes_markdown_or_html(text: str) -> None:
    shown = model_card.escaped(text)
    assert "\n" not in shown and "<" not in shown and ">" not in shown and "\x1b" not in shown
    unescaped = re.sub(r"\\.", "", shown)
    assert not set(unescaped) & set("`*_{}[]#|~$")
    assert not re.match(r"\d*[-+.)=](?=[-=\s]|$)", shown)
    plainly = re.sub(r"\\(.)", r"\1", shown).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert plainly == " ".join(model_card.plain(text).split())


def test_a_cards_yaml_holds_what_it_should_and_no_more(default_constitution: Constitution, tmp_path: Path) -> None:
    text = model_card.adapter_card(base(), default_constitution, "engrave", 90)
    front = yaml.safe_load(text.split("---\n")[1])
    assert front == {
        "library_name": "peft", "pipeline_tag": "text-generation", "base_model": "owner/name",
        "base_model_relation": "adapter", "license": "other", "license_name": "terms-of-the-base-model",
        "language": ["en"], "tags": ["self-align", "lora"],
    }  # fmt: skip
    assert "90 single-turn examples" in text and "7. **candor**" in text and "\n    Terms.\n" in text
    local = tmp_path / "my model.gguf"
    local.write_bytes(b"GGUF")
    text = model_card.adapter_card(base(str(local), ""), default_constitution, "verbose_cloning", 3)
    assert str(tmp_path) not in text and "my model.gguf" in text and "base_model" not in text and "Terms of" not in text


@pytest.mark.parametrize("form", ["adapter", "merged", "gguf-adapter", "gguf"])
def test_the_hub_reads_what_it_needs_from_every_models_card(default_constitution: Constitution, form: str) -> None:
    from huggingface_hub import ModelCard

    texts = default_constitution.model_copy(update={"language": "no"})  # which YAML would read as false
    made = model_card.export_card(base(), texts, form, "final", "f16", "verbose_cloning", "W.", "L\n", "S\n", "Same.")
    data = ModelCard(made).data.to_dict()
    adapter = "adapter" in form
    assert data["library_name"] == {"adapter": "peft", "merged": "transformers"}.get(form, "gguf")
    assert data["base_model"] == "owner/name" and data["base_model_relation"] == ("adapter" if adapter else "finetune")
    assert data["license"] == "other" and data["license_name"] == "terms-of-the-base-model"
    assert data["pipeline_tag"] == "text-generation" and data["language"] == ["no"]
    assert set(data["tags"]) >= {"self-align"} and ("lora" in data["tags"]) == adapter


def test_the_embedded_model_is_named_as_the_hub_does(default_constitution: Constitution) -> None:
    from huggingface_hub import ModelCard

    model = Base("embedded", "0123", None, None, "Terms.", "gemma", "google/gemma-3-270m")
    made = model_card.export_card(
        model, default_constitution, "merged", "final", "f32", "verbose_cloning", "W.", "L\n", "S\n", "Same."
    )
    data = ModelCard(made).data.to_dict()
    assert (data["base_model"], data["license"]) == ("google/gemma-3-270m", "gemma")
    assert "of google/gemma-3-270m" in made


@pytest.mark.parametrize("hostile", HOSTILE)
def test_terms_are_a_block_in_which_nothing_has_a_meaning(hostile: str) -> None:
    for line in model_card.block(f"First.\n{hostile}").splitlines():
        assert line.startswith("    ") or not line
        assert "\x1b" not in line


def test_counts_and_scores_are_tables(default_constitution: Constitution) -> None:
    none = Generation(0, 0, 0, 0, 0.0, 0.0)
    stage = StageCounts("align", True, 9, 5, {"truncated": 1, "exemplar | leaked": 2}, {"engine": 1}, none, 1.0, {})
    table = model_card.counts([stage], {"align": "2 self-align"})
    assert "| 2 self-align | 9 | 5 | exemplar \\| leaked 2; truncated 1; failed: engine 1 |" in table
    assert model_card.scores([]) == "## Scores\n\nNot evaluated.\n"
    row = ("heldout: loss", "final", "36", "1.328", "1.224 to 1.440", "-0.4 vs base (-0.5 to -0.3)")
    table = model_card.scores([row])
    assert "| heldout: loss | final | 36 | 1.328 | 1.224 to 1.440 | -0.4 vs base (-0.5 to -0.3) |" in table


@pytest.mark.parametrize("form", ["adapter", "merged", "gguf-adapter", "gguf"])
def test_every_form_says_how_it_is_loaded(default_constitution: Constitution, form: str) -> None:
    kind, wrote = "q8_0" if form == "gguf" else "", model_card.writers(True, False)
    text = model_card.export_card(
        base(), default_constitution, form, "final", kind, "verbose_cloning", wrote, "L\n", "S\n", "Same."
    )
    assert "The prompts were brought along" in text and "answers were brought along" not in text
    wanted = {
        "adapter": "PeftModel.from_pretrained", "merged": 'AutoModelForCausalLM.from_pretrained(".")',
        "gguf-adapter": "--lora adapter.gguf", "gguf": "ollama create alma -f Modelfile",
    }  # fmt: skip
    assert wanted[form] in text and "Same." in text and text.count("```") == 2
