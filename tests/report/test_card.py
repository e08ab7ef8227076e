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


FACTS = model_card.RunFacts(model_card.authors(True, False), "L\n", "S\n")


def base(source: str = "owner/name", notice: str = "Terms.") -> Model:
    return Base(source, "0123", None, None, notice)


def export_card(model: Model, constitution: Constitution, form: str, weight_type: str) -> str:
    return model_card.export_card(
        model, constitution, FACTS, form=form, name="final", weight_type=weight_type, stage="verbose_cloning",
        comparison="Same.",
    )  # fmt: skip


@given(st.lists(st.sampled_from([*HOSTILE, "word ", " "]), min_size=1, max_size=5).map("".join))
def test_text_never_becomes_markdown_or_html(text: str) -> None:
    escaped = model_card.escaped(text)
    assert "\n" not in escaped and "<" not in escaped and ">" not in escaped and "\x1b" not in escaped
    unescaped = re.sub(r"\\.", "", escaped)
    assert not set(unescaped) & set("`*_{}[]#|~$")
    assert not re.match(r"\d*[-+.)=](?=[-=\s]|$)", escaped)
    plainly = re.sub(r"\\(.)", r"\1", escaped).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert plainly == " ".join(model_card.plain(text).split())


def test_adapter_card_has_exactly_the_expected_yaml(default_constitution: Constitution, tmp_path: Path) -> None:
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
def test_export_cards_are_valid_on_the_hub_and_show_how_to_load(default_constitution: Constitution, form: str) -> None:
    from huggingface_hub import ModelCard

    texts = default_constitution.model_copy(update={"language": "no"})  # which YAML would read as false
    text = export_card(base(), texts, form, "q8_0" if form == "gguf" else "")
    data = ModelCard(text).data.to_dict()
    adapter = "adapter" in form
    assert data["library_name"] == {"adapter": "peft", "merged": "transformers"}.get(form, "gguf")
    assert data["base_model"] == "owner/name" and data["base_model_relation"] == ("adapter" if adapter else "finetune")
    assert data["license"] == "other" and data["license_name"] == "terms-of-the-base-model"
    assert data["pipeline_tag"] == "text-generation" and data["language"] == ["no"]
    assert set(data["tags"]) >= {"self-align"} and ("lora" in data["tags"]) == adapter
    assert "The user provided the prompts;" in text
    expected = {
        "adapter": "PeftModel.from_pretrained", "merged": 'AutoModelForCausalLM.from_pretrained(".")',
        "gguf-adapter": "--lora adapter.gguf", "gguf": "ollama create alma -f Modelfile",
    }  # fmt: skip
    assert expected[form] in text and "Same." in text and text.count("```") == 2


def test_embedded_model_has_its_hub_name(default_constitution: Constitution) -> None:
    from huggingface_hub import ModelCard

    model = Base("embedded", "0123", None, None, "Terms.", "gemma", "google/gemma-3-270m")
    card = export_card(model, default_constitution, "merged", "f32")
    data = ModelCard(card).data.to_dict()
    assert (data["base_model"], data["license"]) == ("google/gemma-3-270m", "gemma")
    assert "of google/gemma-3-270m" in card


@pytest.mark.parametrize("hostile", HOSTILE)
def test_terms_are_an_indented_block(hostile: str) -> None:
    for line in model_card.block(f"First.\n{hostile}").splitlines():
        assert line.startswith("    ") or not line
        assert "\x1b" not in line


def test_counts_and_scores_are_tables(default_constitution: Constitution) -> None:
    none = Generation(0, 0, 0, 0, 0.0, 0.0)
    stage = StageCounts("align", True, 9, 5, {"truncated": 1, "exemplar | leaked": 2}, {"engine": 1}, none, 1.0, {})
    table = model_card.data_section([stage])
    assert "| 2 self-align | 9 | 5 | exemplar \\| leaked 2; truncated 1; failed: engine 1 |" in table
    assert model_card.scores_section([]) == "## Scores\n\nNot evaluated.\n"
    row = ("heldout: loss", "final", "36", "1.328", "1.224 to 1.440", "-0.4 vs base (-0.5 to -0.3)")
    table = model_card.scores_section([row])
    assert "| heldout: loss | final | 36 | 1.328 | 1.224 to 1.440 | -0.4 vs base (-0.5 to -0.3) |" in table
