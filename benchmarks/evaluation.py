"""Compare our scorer with the HF model of lm-evaluation-harness on the same texts and weights, in one process.

    SELFALIGN_BENCHMARKS=FOLDER python benchmarks/evaluation.py      # about 10 minutes on two cores; needs lm-eval

Sample: 60 comparisons of HHH as A or B in both orders, 60 questions of TruthfulQA as true or false, in blocks that both
score in turns, the first one alternating; medians over the blocks. Prints the seconds of each, their ratio, the largest
difference of a log-likelihood, and the accuracies, which must be the same.
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

Way = Callable[[Sequence[Text]], list[Scored]]


def harness(scorer: TorchScorer, folder: str, batch: int) -> Way:
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


def timed(way: Way, texts: Sequence[Text]) -> tuple[list[Scored], float]:
    start = time.monotonic()
    results = way(texts)
    return results, time.monotonic() - start


def values(form: Form, items: Sequence[Item], results: Sequence[Scored]) -> dict[str, float]:
    """The mean of each measure over the items."""
    rest, rows = iter(results), []
    for item in items:
        rows.append(form.read(item, [next(rest) for _ in form.cells(item)]))
    return {name: sum(r[name] for r in rows) / len(rows) for name in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="lm-evaluation-harness' batch size")
    parser.add_argument("--model", default="embedded")
    arguments = parser.parse_args()

    base, texts = sources.resolve(arguments.model), constitution.load("default")
    scorer = TorchScorer(base.folder(print), {}, base.tokenizer())
    ways: dict[str, Way] = {
        "ours": lambda asked: [s for s in scorer.loglikelihoods(asked, None) if s],
        "lm-eval": harness(scorer, str(base.folder()), arguments.batch),
    }
    warm = [cell_text(base.template, texts, "standard", cell) for cell in hhh.FORMS[0].cells(
        hhh.Comparison(0, "", "Who is there?", ("Me.", "You."), 0))]  # fmt: skip
    for way in ways.values():
        way(warm)
    for origin, form in ((hhh.ORIGIN, hhh.FORMS[0]), (truthfulqa.ORIGIN, truthfulqa.FORMS[0])):
        items = benchmarks.load(origin).first(arguments.items).items
        seconds: dict[str, list[float]] = {n: [] for n in ways}
        all_results: dict[str, list[Scored]] = {n: [] for n in ways}
        in_order: list[Item] = []
        for block in range(arguments.blocks):
            part = items[block :: arguments.blocks]
            in_order += part
            requests = [cell_text(base.template, texts, "standard", c) for i in part for c in form.cells(i)]
            order = list(ways) if block % 2 == 0 else list(ways)[::-1]
            for way in order:
                results, took = timed(ways[way], requests)
                all_results[way] += results
                seconds[way].append(took)
        ratios = [b / a for a, b in zip(seconds["ours"], seconds["lm-eval"], strict=True)]
        apart = max(abs(a.total - b.total) for a, b in zip(all_results["ours"], all_results["lm-eval"], strict=True))
        print(f"\n{origin.name}, {form.name}: {len(items)} items, {len(all_results['ours'])} texts, base")
        for way, took in seconds.items():
            means = ", ".join(f"{m} {v:.4f}" for m, v in values(form, in_order, all_results[way]).items())
            print(f"  {way:<8} {sum(took):6.1f} s ({', '.join(f'{s:.1f}' for s in took)}); {means}")
        print(f"  largest difference of a log-likelihood {apart:.1e}")
        print(f"  evaluation.ratio_lm_eval {statistics.median(ratios):.2f} ({', '.join(f'{r:.2f}' for r in ratios)})")
    requested, computed = scorer.tokens
    print(f"\ntokens: {computed:,} computed of {requested:,} requested")


if __name__ == "__main__":
    main()
