"""Compare our scorer with the HF model of lm-evaluation-harness on the same texts and weights, in one process.

    SELFALIGN_BENCHMARKS=FOLDER python benchmarks/evaluation.py      # about 10 minutes on two cores; needs lm-eval

The sample is 60 comparisons of HHH (as A or B in both orders) and 60 questions of TruthfulQA (as true or false), in
blocks that both score alternately; the ratio is a median over the blocks. Prints the seconds of each, their ratio, the
largest difference of a log-likelihood, and the accuracies, which must be the same.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable, Sequence

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer

from selfalign import constitution
from selfalign.evaluation import benchmarks
from selfalign.evaluation.benchmarks import Item
from selfalign.evaluation.prompting import Form, cell_text
from selfalign.evaluation.tasks import hhh, truthfulqa
from selfalign.generation.scoring.base import Scored, Text
from selfalign.generation.scoring.torch_scorer import TorchScorer
from selfalign.model import sources

Score = Callable[[Sequence[Text]], list[Scored]]


def harness(scorer: TorchScorer, folder: str, batch: int) -> Score:
    """Return lm-evaluation-harness on the weights that our scorer has in memory."""
    logging.disable(logging.WARNING)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = HFLM(pretrained=scorer._model, tokenizer=tokenizer, batch_size=batch, device="cpu")

    def score(texts: Sequence[Text]) -> list[Scored]:
        instances = [
            Instance("loglikelihood", {}, (tokenizer.bos_token + "".join(context[1:]), answer), i)
            for i, (context, answer) in enumerate(texts)
        ]
        return [Scored((value,)) for value, _ in model.loglikelihood(instances, disable_tqdm=True)]

    return score


def timed(score: Score, texts: Sequence[Text]) -> tuple[list[Scored], float]:
    start = time.monotonic()
    results = score(texts)
    return results, time.monotonic() - start


def values(form: Form, items: Sequence[Item], results: Sequence[Scored]) -> dict[str, float]:
    """Return the mean of each measure over the items."""
    remaining, rows = iter(results), []
    for item in items:
        rows.append(form.read(item, [next(remaining) for _ in form.cells(item)]))
    return {name: sum(r[name] for r in rows) / len(rows) for name in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="lm-evaluation-harness' batch size")
    parser.add_argument("--model", default="embedded")
    arguments = parser.parse_args()

    base, principles = sources.resolve(arguments.model), constitution.load("default")
    scorer = TorchScorer(base.folder(print), {}, base.tokenizer())
    score_functions: dict[str, Score] = {
        "ours": lambda texts: [s for s in scorer.loglikelihoods(texts, None) if s],
        "lm-eval": harness(scorer, str(base.folder()), arguments.batch),
    }
    warm = [cell_text(base.template, principles, "standard", cell) for cell in hhh.FORMS[0].cells(
        hhh.Comparison(0, "", "Who is there?", ("Me.", "You."), 0))]  # fmt: skip
    for score in score_functions.values():
        score(warm)
    for origin, form in ((hhh.ORIGIN, hhh.FORMS[0]), (truthfulqa.ORIGIN, truthfulqa.FORMS[0])):
        items = benchmarks.load(origin).first(arguments.items).items
        seconds: dict[str, list[float]] = {n: [] for n in score_functions}
        all_results: dict[str, list[Scored]] = {n: [] for n in score_functions}
        in_order: list[Item] = []
        for block in range(arguments.blocks):
            part = items[block :: arguments.blocks]
            in_order += part
            requests = [cell_text(base.template, principles, "standard", c) for i in part for c in form.cells(i)]
            order = list(score_functions) if block % 2 == 0 else list(score_functions)[::-1]
            for name in order:
                results, took = timed(score_functions[name], requests)
                all_results[name] += results
                seconds[name].append(took)
        ratios = [b / a for a, b in zip(seconds["ours"], seconds["lm-eval"], strict=True)]
        difference = max(
            abs(a.total - b.total) for a, b in zip(all_results["ours"], all_results["lm-eval"], strict=True)
        )
        print(f"\n{origin.name}, {form.name}: {len(items)} items, {len(all_results['ours'])} texts, base")
        for name, took in seconds.items():
            means = ", ".join(f"{m} {v:.4f}" for m, v in values(form, in_order, all_results[name]).items())
            print(f"  {name:<8} {sum(took):6.1f} s ({', '.join(f'{s:.1f}' for s in took)}); {means}")
        print(f"  largest difference of a log-likelihood {difference:.1e}")
        print(f"  evaluation.ratio_lm_eval {statistics.median(ratios):.2f} ({', '.join(f'{r:.2f}' for r in ratios)})")
    requested, computed = scorer.tokens
    print(f"\ntokens: {computed:,} computed of {requested:,} requested")


if __name__ == "__main__":
    main()
