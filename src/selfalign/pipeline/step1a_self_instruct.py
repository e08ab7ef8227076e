"""Stage 1a, Self-Instruct: seed tasks -> prompts.   seeds -> 1_prompts/self_instruct.jsonl

Each request shows a few tasks and lets the model continue the list. The stage works in rounds (`rounds`), so that runs
accept the same prompts with any number of slots, and after they were killed. (Self-Instruct, arXiv 2212.10560;
SELF-ALIGN, arXiv 2305.03047, section 3.2.)
"""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

from selfalign.constitution import SeedTask, load_seeds
from selfalign.data.prompt_text import BOS, Pieces
from selfalign.data.records import Prompt, content_hash, join_input, prompt_id
from selfalign.generation.engines.base import Request, Step
from selfalign.generation.loop import GenerationResult, RowRequest, row_seed
from selfalign.pipeline.rounds import Candidate, Rounds
from selfalign.quality.instruction_filters import reason_to_drop
from selfalign.quality.language import LANGUAGES
from selfalign.run.context import Context
from selfalign.run.ledger import RowOutcome

STAGE = "self_instruct"

HEADER = (
    "A list of different tasks that people give to a text assistant. The tasks differ in subject, verb and form: "
    "questions, explanations, plans, rewriting, sorting, short creative texts. Each can be solved with text alone. "
    "The instruction is one or two clear sentences. If the task works on a given text, that text is the input; "
    "otherwise the input is <noinput>.\n\n"
)


def run(context: Context) -> list[Path]:
    """Generate prompts until the recipe's count is reached; return the files."""
    config = context.recipe.prompts.self_instruct
    seeds = load_seeds(context.recipe.seeds)
    rounds = Rounds(context, STAGE, config.count, [s.instruction for s in seeds], [s.input for s in seeds])
    first = min(config.seeds_per_request, len(seeds)) + 1  # the task number at the end of every prompt

    def make_requests() -> list[RowRequest]:
        # As many requests as the yield so far requires; the first round assumes two prompts per request.
        rate = len(rounds.accepted) / rounds.requests if rounds.requests else 2.0
        size = min(config.requests_per_round, max(4, round(rounds.missing / max(rate, 0.25))))
        return [_request(context, seeds, rounds.accepted, rounds.number, i) for i in range(size)]

    def parse_result(request: RowRequest, result: GenerationResult) -> list[Candidate]:
        return _candidates(context, result, first)

    return [rounds.run("self-instruct", config.max_rounds, make_requests, parse_result)]


def _request(context: Context, seeds: list[SeedTask], accepted: list[Prompt], number: int, position: int) -> RowRequest:
    config = context.recipe.prompts.self_instruct
    row_id = content_hash(STAGE, number, position)
    seed = row_seed(context.recipe.seed, row_id)
    rng = random.Random(seed)  # noqa: S311
    shown = rng.sample(seeds, min(config.seeds_per_request, len(seeds)))
    own = min(round(context.recipe.prompts.steering.own_seeds * len(shown)), len(accepted))
    if own:
        shown[:own] = [SeedTask(instruction=p.instruction, input=p.input) for p in rng.sample(accepted, own)]
        rng.shuffle(shown)
    sampling = replace(context.sampling(config), ban_eos=True)
    pieces = render(shown, context.run.constitution.language)
    return RowRequest(row_id, Request(pieces, (Step(sampling, stop=("\n\n\n",)),), seed), "tasks")


def requests(context: Context, number: int) -> list[Request]:
    """Return the first requests of the first round, for a preview."""
    seeds = load_seeds(context.recipe.seeds)
    return [_request(context, seeds, [], 0, i).request for i in range(number)]


def render(seeds: list[SeedTask], language: str = "en") -> Pieces:
    """Render the prompt: the header, the shown tasks, and the number of the next task."""
    header = HEADER if language == "en" else f"{HEADER.strip()} All tasks are in {LANGUAGES[language]}.\n\n"
    blocks = "".join(
        f"###\n{n}. Instruction: {' '.join(s.instruction.split()).rstrip(':')}\n{n}. Input:\n{s.input or '<noinput>'}\n"
        for n, s in enumerate(seeds, 1)
    )
    return (BOS, f"{header}{blocks}###\n{len(seeds) + 1}. Instruction:")


_HEAD = re.compile(r"(\d+)\.\s*Instruction:")


def parse(text: str, first: int, truncated: bool) -> list[tuple[str, str] | str]:
    """Return (instruction, input) of each block of a completion, or the text of a malformed block.

    Args:
        first: the number at the end of the prompt.
        truncated: the token limit cut the completion, so its last block is skipped.
    """
    blocks = re.split(r"\n?###", f"{first}. Instruction:{text}")
    if truncated:
        blocks = blocks[:-1]
    tasks: list[tuple[str, str] | str] = []
    for block in blocks:
        if not block.strip():
            continue
        block = block.strip()
        head = _HEAD.match(block)
        # The input must have the same number. A second instruction or input makes the block malformed.
        parts = re.split(rf"\n[^\S\n]*{head[1]}\.\s*Input:", block[head.end() :]) if head else []
        if len(parts) != 2 or re.search(r"\d\.\s*(Instruction|Input):", "\n".join(parts)):
            tasks.append(block)
            continue
        instruction, text = parts[0], parts[1].strip()
        text = "" if text.strip("<>. ").lower() in ("noinput", "no input", "none", "n/a", "") else text
        tasks.append((" ".join(instruction.split()), text))
    return tasks


def _candidates(context: Context, result: GenerationResult, first: int) -> list[Candidate]:
    if result.completion is None:
        return [(RowOutcome(content_hash(result.row_id), 0, result.state, result.reason, ""), None)]
    language, filters = context.run.constitution.language, context.recipe.filters.prompts
    part = result.completion.parts[0]
    blocks = parse(part.text, first, part.finish == "length")
    if not blocks:
        return [(RowOutcome(content_hash(result.row_id), 0, "dropped", "nothing parsed", part.text[:400]), None)]
    candidates: list[Candidate] = []
    for number, block in enumerate(blocks):
        row_id = content_hash(result.row_id, number)
        text = block if isinstance(block, str) else "\n".join(block)
        if isinstance(block, str):
            candidates.append((RowOutcome(row_id, 0, "dropped", "malformed", text[:400]), None))
        elif reason := reason_to_drop(block[0] or "?", block[1], language, filters, red_team=False):
            candidates.append((RowOutcome(row_id, 0, "dropped", reason, text[:400]), None))
        elif hit := context.benchmarks.find(block[0], join_input(*block)):
            candidates.append((RowOutcome(row_id, 0, "dropped", hit.reason, hit.ledger_text(text)), None))
        else:
            prompt = Prompt(prompt_id(*block), block[0], block[1], source=STAGE)
            candidates.append((RowOutcome(row_id, 0, "kept", "", prompt.message), prompt))
    return candidates
