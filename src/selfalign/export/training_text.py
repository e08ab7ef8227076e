"""Render rows as the text that the run trains on, and skip rows that another trainer would encode differently."""

from __future__ import annotations

from pathlib import Path

from selfalign.data.formats import Row
from selfalign.data.prompt_text import BOS, Turn
from selfalign.export import chat_template
from selfalign.model.dialogue import Template, Tokenizer, encode_example

_TRL_MAX_LENGTH = 1024
"""Longer rows are truncated by TRL's default settings."""


class TrainingText:
    """Renders rows, and records the rows that it skips.

    Args:
        file: tokenizer.json. Other trainers use it directly: it turns the text of a control token into the token, and
            may add a start token.
    """

    def __init__(self, file: Path, tokenizer: Tokenizer, template: Template, label: str) -> None:
        from tokenizers import Tokenizer as Backend

        self._trainer = Backend.from_file(str(file))
        self._trainer.no_truncation()
        self._trainer.no_padding()
        self._tokenizer = tokenizer
        self._template = template
        self._label = label
        bos = tokenizer.encode((BOS,))
        self._bos = "" if self._encode("")[: len(bos)] == bos else tokenizer.text(bos)
        self._longest = 0
        self._skipped: list[str] = []

    def _encode(self, text: str) -> list[int]:
        return list(self._trainer.encode(text).ids)

    def render(self, row_id: str, row: Row) -> dict[str, str] | None:
        """Return prompt and completion, or None if a trainer would encode them to other tokens than this run."""
        texts = rendered(row, self._template, self._label, self._bos)
        if self._same_tokens(row, texts):
            return texts
        self._skipped.append(row_id)
        return None

    def _same_tokens(self, row: Row, texts: dict[str, str]) -> bool:
        system = row.system or ""
        if row.answer is None:
            prompt = self._tokenizer.encode(self._template.prompt(system, [Turn("user", row.message)], self._label))
            return self._encode(texts["prompt"]) == prompt
        expected = encode_example(self._tokenizer, self._template, system, row.message, row.answer, self._label)
        self._longest = max(self._longest, len(expected.ids))
        prompt = expected.ids[: expected.mask.index(True)]
        whole = texts["prompt"] + texts["completion"]
        return self._encode(texts["prompt"]) == prompt and self._encode(whole) == expected.ids

    def notes(self) -> list[str]:
        """Return notes on the skipped rows, and on the settings that TRL needs."""
        notes = []
        if self._skipped:
            notes.append(
                "rows skipped because a trainer would encode them differently from this run (they contain the text of "
                f"a control token, or tokens that merge across turns): {len(self._skipped):,}, for example "
                f"{', '.join(self._skipped[:3])}"
            )
        if self._longest:
            cut = f", max_length at least {self._longest:,}" if self._longest > _TRL_MAX_LENGTH else ""
            notes.append(f"for TRL: eos_token={self._template.end!r}{cut}; loss on the completion only (the default)")
        return notes


def rendered(row: Row, template: Template, label: str, bos: str) -> dict[str, str]:
    """Return the training text of a row: the prompt up to the response, and the completion with the end token.

    Args:
        bos: the start token, if the tokenizer does not add it; else "".
    """
    texts = {"prompt": chat_template.text(template, row.system or "", [Turn("user", row.message)], label, bos)}
    if row.answer is not None:
        texts["completion"] = f"{template.space}{row.answer.strip()}{template.end}"
    return texts
