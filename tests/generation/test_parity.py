"""The comparison of torch and engine: its positions, and the log-probabilities there."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from selfalign.generation import parity


@given(st.lists(st.integers(1, 400), min_size=1, max_size=12))
def test_spans_are_the_last_positions_of_each_row(lengths: list[int]) -> None:
    rows = [[0] * n for n in lengths]
    spans = parity.spans(rows)
    counts = [len(span) for _, span in spans]
    assert sum(counts) == min(parity.POSITIONS, sum(n - 1 for n in lengths))
    for row, span in spans:
        assert len(span) and span[0] >= 1 and span[-1] == len(row) - 1
    # Rows that are long enough have equally many positions, up to the remainder.
    equal = [n for n, (row, _) in zip(counts, spans, strict=True) if n < len(row) - 1]
    assert not equal or max(equal) - min(equal) <= 1


def test_log_probabilities_equal_a_plain_forward_pass() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        initializer_range=0.5,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    rows = [[1, 2, 3, 4, 5, 6], [9, 8, 7]]
    reads = parity.torch_reads(model, parity.spans(rows))
    with torch.no_grad():
        whole = [torch.log_softmax(model(torch.tensor([row])).logits[0, :-1], -1) for row in rows]
    torch.testing.assert_close(reads, torch.cat(whole))
    assert parity._most_likely_tokens(model, parity.spans(rows)) == reads.argmax(-1).tolist()
    assert parity.agreement([1, 2, 3, 4], [1, 2, 0, 4]) == 0.75
