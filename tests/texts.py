"""A thousand texts that could be encoded differently in two places, seeded, and real ones."""

from __future__ import annotations

import random
from collections.abc import Iterable

from selfalign import constitution as constitutions
from selfalign.constitution.rendering import query, render

_ROLE = [
    "<bos>", "<eos>", "<s>", "</s>", "<pad>", "<unk>", "<mask>", "<unused7>", "<unused6241>", "<start_of_turn>",
    "<end_of_turn>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|start_header_id|>", "<|eot_id|>",
    "<|begin_of_text|>", "<|user|>", "<|assistant|>", "<|end|>", "<|START_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>",
    "[INST]", "[/INST]", "<<SYS>>", "<end_of_utterance>", "<|turn>", "<turn|>", "<EOT>", "[EOS]", "### User:",
    "<0x0A>", "<0xFF>", "<start_of_image>", "<|reserved_special_token_3|>", "<tool_call>", "<think>", "</think>",
]  # fmt: skip
_PARTIAL = [
    "<end_of",
    "_turn>",
    "<|im",
    "_end|>",
    "<|",
    "|>",
    "<",
    ">",
    "</",
    "s>",
    "<e",
    "os>",
    "<unused",
    "7>",
    "[IN",
]
_PLAIN = [
    "Hello", " world", "User:", "Alma:", "\n\nUser: and then?", "isn't it", " We'll", "naïve", "Straße", "don’t",
    "1234", " 3.14", "10,000", "٣٤", "½", "²", "Ⅷ", "{}", "def f(x):\n\treturn x ** 2", "a<b>c</b>", "<h1>", "</td>",
    "- item", "3 (helpful)", "…", "https://example.org/?q=a%20b&c=d#e", "C:\\new\\table", "&lt;eos&gt;", "\\n",
    "$x_i^2$",
    "日本語", "中文字符", "한국어", "Привет", "مرحبا", "שלום", "ไทย", "हिन्दी", "🙂", "👩‍👩‍👧‍👦", "🇩🇪", "1️⃣",
    "e\u0301", "a\u0308\u0323", "\u0301", "\u200b", "\u200d", "\u200e", "\u202e", "\ufeff", "\u00ad", "\u2060",
    "\u00a0", "\u2003", "\u3000", "\u2028", "\x85", "\x00", "\x1b[31m", "\x7f", "\ufffd", "\U0010ffff", "ﬁ", "Ａ", "İ",
    "ß", "▁", "Ġ", "##ing",
]  # fmt: skip
_BLANK = [" ", "  ", "\n", "\n\n", "\t", "\r\n"]


def thousand(added: Iterable[str], controls: Iterable[str]) -> list[str]:
    """The real texts, and hostile ones up to a thousand, half of them with control tokens spelled out.

    Args:
        added: what the tokenizer at hand lists as added tokens; each stands in a text.
        controls: those of them that are control tokens.
    """
    rng = random.Random(3)
    known, texts = set(controls), real()
    left = 1000 - len(texts)
    for number, special in ((left // 2, False), (left - left // 2, True)):
        own = sorted(t for t in added if (t in known) == special)
        rng.shuffle(own)
        for n in range(number):
            parts = (
                rng.choices(_PLAIN, k=rng.randint(1, 6)) + rng.choices(_PARTIAL, k=rng.randint(0, 3)) + own[n::number]
            )
            parts += rng.choices(_ROLE, k=rng.randint(1, 4)) if special else []
            parts += [
                rng.choice(_BLANK) * rng.choice((1, 1, 2, 3, rng.randint(1, 60))) for _ in range(rng.randint(0, 4))
            ]
            parts += [chr(rng.choice((rng.randrange(32, 0x3000), rng.randrange(0xE000, 0x20000)))) for _ in range(2)]
            rng.shuffle(parts)
            texts.append("".join(parts))
    return texts


def real() -> list[str]:
    """What the software itself asks with: constitutions, their exemplars, rules and identity, seed tasks."""
    found = []
    for name in ("default", "two-stage"):
        texts = constitutions.load(name)
        found.append(render(texts) + query(texts, "Why is the sky blue?"))
        found += [
            part for e in texts.exemplars for turn in e.turns() for part in (turn.user, turn.thoughts, turn.answer)
        ]
        found += [p.rule for p in texts.principles] + [pair.answer for pair in texts.identity]
    found += [f"{s.instruction}\n\n{s.input}" for s in constitutions.load_seeds("default")]
    return list(dict.fromkeys(found))
