"""What several test files need: reproducible property tests, a run on the fake engine, a guard against hanging."""

from __future__ import annotations

import gc
import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import report_numbers
from selfalign import constitution as constitutions
from selfalign.constitution import Constitution
from selfalign.generation.engines import llama_cpp
from selfalign.generation.engines.fake import Fake, default_script
from selfalign.run import recipe as recipes
from selfalign.run.context import Context
from selfalign.run.directory import RunDir
from selfalign.system.console import Screen
from selfalign.system.environment import share_processor

share_processor()
# One thread for each test process: several of them share the cores, and threads that wait for each other waste them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
llama_cpp.usable_cores = lambda: 1
# The public benchmarks, where they lie beside the checkout; tests that need them are skipped elsewhere.
_BESIDE = Path(__file__).parents[2] / "shared/data"
if _BESIDE.is_dir():
    os.environ.setdefault("SELFALIGN_BENCHMARKS", str(_BESIDE))

settings.register_profile(
    "fixed",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fixed")


LONGEST = (
    "test_end_to_end.py", "test_cli.py", "test_export.py", "test_executors.py", "test_view_page.py", "test_report.py",
    "test_exemplar_cache.py", "test_serve_chat_page.py", "test_constitution_verbs.py", "test_crash.py",
    "test_real_tokens.py", "test_loop.py", "test_view_index.py",
)  # fmt: skip
"""The test files that take longest, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the longest files, so that none of them runs alone at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    """Exempt what the test files have imported from garbage collection, which would visit all of it again and again."""
    gc.collect()
    gc.freeze()


@contextmanager
def hang_guard(limit: float = 20.0) -> Iterator[None]:
    """Fail where the block hangs, a regex included: processor seconds far beyond what any machine needs for it."""

    def too_slow(*_: object) -> None:
        raise AssertionError(f"took more than {limit} s of processor time")

    before = signal.signal(signal.SIGVTALRM, too_slow)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def byte_tokenizer(folder: Path, special: Sequence[str] = ("<bos>", "<eos>"), ordinary: Sequence[str] = ()) -> Path:
    """The file of a tokenizer of bytes and these tokens; the ordinary ones are known but not special."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.decoders import ByteLevel as ByteDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    made = Tokenizer(BPE({c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}, []))
    made.pre_tokenizer = ByteLevel(add_prefix_space=False)
    made.decoder = ByteDecoder()
    made.add_tokens([AddedToken(token, special=True) for token in special])
    made.add_tokens([AddedToken(token, special=False) for token in ordinary])
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


@pytest.fixture(scope="session")
def default_constitution() -> Constitution:
    return constitutions.load("default")


@pytest.fixture(scope="session")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the report says of a run in which everything happened. Not to be changed."""
    return report_numbers.gather(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: two random layers of a real architecture, a tokenizer of bytes."""
    import torch
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend
    from tokenizers.decoders import ByteLevel as ByteDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "base"
    backend = Backend(BPE({c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = ByteDecoder()
    backend.add_tokens([AddedToken(t, special=True) for t in ("<bos>", "<eos>")])
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>").save_pretrained(folder)
    said = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**said, "add_bos_token": True}))
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=258, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=4096, bos_token_id=256, eos_token_id=257,
        tie_word_embeddings=False, initializer_range=0.1,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_run(
    tmp_path: Path, tiny_base: Path, default_constitution: Constitution, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Context]]:
    """Makes contexts of stage 3 on the tiny base: `tiny_run("engrave.elsewhere=true", answers=13)`."""
    from selfalign.data.records import Response, write_jsonl

    made: list[Context] = []
    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path / "cache"))

    def make(*sets: str, name: str = "run", answers: int = 13) -> Context:
        lora = ["engrave.targets=[q_proj, k_proj, v_proj, o_proj]", "engrave.identity_repeats=1"]
        lora += ["engrave.exemplar_repeats=0", "engrave.seed_repeats=0"]
        lora += ["verbose_cloning.start=base", "verbose_cloning.learning_rate=null"]
        lora += ["engrave.rank=4", "engrave.dropout=0.0", "engrave.max_length=2048", "engrave.learning_rate=0.02"]
        # No server is asked: stage 3 only trains.
        server = ["engine.kind=openai", "engine.url=http://127.0.0.1:1"]
        recipe = recipes.load("quick", [f"model={tiny_base}", "stages=[engrave]", *server, *lora, *sets])
        context = Context(RunDir.create(tmp_path / name, recipe, default_constitution), Screen(-1))
        rows = [
            Response(f"{i:016x}", f"What is {i}?", "", f"It is <eos> {'very ' * (i % 5)}old.") for i in range(answers)
        ]
        write_jsonl(context.run.jsonl("responses"), rows)
        made.append(context)
        return context

    yield make
    for context in made:
        context.journal.close()


@pytest.fixture
def fake_run(tmp_path: Path, default_constitution: Constitution) -> Iterator[Callable[..., Context]]:
    """Makes contexts on the fake engine: `fake_run("align.form=paper", name="a", script=...)`.

    The recipe is quick, with questions by topic, so that every ledger of stage 1 has rows.
    """
    made: list[Context] = []

    def make(*sets: str, name: str = "run", texts: Constitution | None = None, **fake: Any) -> Context:
        few = ["engrave.exemplar_repeats=0", "engrave.seed_repeats=0"]
        recipe = recipes.load(
            "quick", ["engine.kind=fake", "prompts.red_team.form=by_topic", "evaluate.limit=6", *few, *sets]
        )
        texts = texts or default_constitution
        context = Context(RunDir.create(tmp_path / name, recipe, texts), Screen(-1))
        context._engine = Fake(parallel=context.slots(), **{"script": default_script, **fake})
        context._engine_for = context.identities(("engrave", "verbose_cloning"))
        made.append(context)
        return context

    yield make
    for context in made:
        context.release_engine()
        context.journal.close()


@pytest.fixture
def tiny_gemma() -> Any:
    """A small random model of the embedded model's architecture, frozen."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(1)
    config = Gemma3TextConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, sliding_window=8, max_position_embeddings=128,
    )  # fmt: skip
    model = Gemma3ForCausalLM(config)
    model.requires_grad_(False)
    return model


@pytest.fixture
def tiny_llama() -> Any:
    """A small random Llama, frozen."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.requires_grad_(False)
    return model


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Stop the run after a number of finished rounds of stage 1."""
    from selfalign.pipeline import rounds
    from selfalign.system.signals import STOP

    def arrange(number: int) -> None:
        close, closed = rounds.Rounds.close, Counter[str]()

        def closing(self: rounds.Rounds, *args: object) -> None:
            close(self, *args)  # type: ignore[arg-type]
            closed["rounds"] += 1
            if closed["rounds"] == number:
                STOP._signum = 2

        monkeypatch.setattr(rounds.Rounds, "close", closing)

    return arrange
