"""Which positions are compared, and what is read there."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from selfalign.generation import parity


@given(st.lists(st.integers(1, 400), min_size=1, max_size=12))
def test_the_last_positions_of_each_row_make_200_where_there_are_so_many(lengths: list[int]) -> None:
    rows = [[0] * n for n in lengths]
    found = parity.spans(rows)
    taken = [len(span) for _, span in found]
    assert sum(taken) == min(parity.POSITIONS, sum(n - 1 for n in lengths))
    for row, span in found:
        assert len(span) and span[0] >= 1 and span[-1] == len(row) - 1
    # Rows that are long enough give as many as each other, but for the remainder.
    whole = [n for n, (row, _) in zip(taken, found, strict=True) if n < len(row) - 1]
    assert not whole or max(whole) - min(whole) <= 1


def test_five_long_rows_give_their_last_40() -> None:
    assert [span for _, span in parity.spans([[0] * 300] * 5)] == [range(260, 300)] * 5


def test_log_probabilities_are_those_of_the_model_itself() -> None:
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
