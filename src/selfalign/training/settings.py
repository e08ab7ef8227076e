"""Define the recipe's settings of training: LoRA, optimiser, memory, device."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from selfalign.system.strict_yaml import Strict

ANCHOR_ROWS = 2
"""Anchors of an optimiser step (`TrainingSettings.anchor`)."""


class OnPolicySettings(Strict):
    """How `method: on_policy` trains (docs/on_policy.md)."""

    warmup: Literal["sft", "none"] = "sft"
    """What precedes the rounds. sft: the training of `method: sft`; none: nothing."""
    rounds: int = Field(3, ge=1, le=100)
    """Rounds, each of which generates responses with the adapter so far and trains on them once."""
    prompts: int = Field(64, ge=1)
    """Maximum responses of a round, each to another training prompt."""
    divergence: Literal["forward", "reverse", "js"] = "reverse"
    """forward: KL(teacher, student); reverse: KL(student, teacher); js: Jensen-Shannon."""
    clip: float = Field(2.0, gt=0)
    """A token with a larger divergence, in nats, has the weight clip / divergence."""
    learning_rate: float = Field(1.0e-4, gt=0)
    """Peak learning rate of a round."""


class TrainingSettings(Strict):
    """How stages 3 and 4 train their adapters."""

    rank: int = Field(16, ge=1, le=256)
    """Rank r of the LoRA matrices."""
    alpha: int = Field(16, ge=1)
    """LoRA's scale: the adapter adds alpha / rank * B @ A to a weight."""
    dropout: float = Field(0.05, ge=0, lt=1)
    """Dropout on the adapter's input."""
    targets: list[
        Literal[
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj"
        ]
    ] = Field(["q_proj", "k_proj", "v_proj", "o_proj"], min_length=1)  # fmt: skip
    """Linear layers that get an adapter; the base must have all of them."""
    method: Literal["sft", "dpo", "on_policy"] = "sft"
    """How stage 3 trains. sft: on stage 2's responses, as in the paper; dpo: also to prefer them to responses without
    the constitution (docs/dpo.md); on_policy: then also on the model's own responses, towards the base's
    probabilities with the constitution (docs/on_policy.md). Stage 4 always uses sft."""
    beta: float = Field(0.1, gt=0)
    """dpo: the scale of the difference between the log-probabilities of the adapter and of the base."""
    sft_weight: float = Field(1.0, ge=0)
    """dpo: weight of the sft loss on the chosen responses, which is the only loss of examples without a rejected
    response. 0: without it, and without these examples."""
    pair_samples: int = Field(4, ge=1, le=16)
    """dpo: maximum rejected responses per prompt: another one is generated until one is usable."""
    length_ratio: float = Field(2.0, ge=1)
    """dpo: a pair is dropped if one response has more than this many times the characters of the other."""
    on_policy: OnPolicySettings = OnPolicySettings()  # type: ignore[call-arg]
    """on_policy: its rounds and its loss."""
    anchor: float = Field(0.0, ge=0)
    """Weight of the KL divergence from the base on plain texts, which preserves the base's language outside of
    dialogues; 0: off, as in the paper. `elsewhere` ignores it."""
    learning_rate: float = Field(4.0e-4, gt=0)
    """Peak learning rate."""
    epochs: int = Field(2, ge=1)
    batch_size: int = Field(8, ge=1)
    """Examples per optimiser step."""
    warmup_steps: int = Field(5, ge=0)
    """Steps over which the learning rate rises to its peak."""
    schedule: Literal["linear", "cosine"] = "linear"
    """How the learning rate decays to zero after the warm-up."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Norm to which gradients are clipped."""
    validation: float = Field(0.0, ge=0, le=0.5)
    """Fraction of the examples that is held out to measure the loss on; 0: none."""
    validate_every: int | None = Field(None, ge=1)
    """Steps between two measurements of the held-out loss; null: once per epoch."""
    patience: int | None = Field(None, ge=1)
    """Stop after this many measurements without a lower held-out loss, and keep the best adapter; null: never."""
    micro_batch_tokens: int = Field(1024, ge=1)
    """Tokens per forward pass, padding included; determines the memory used. Halved when memory runs out."""
    gradient_checkpointing: bool = False
    """Recompute each layer in the backward pass instead of storing it: less memory, a third slower."""
    checkpoint_seconds: float = Field(60.0, ge=0)
    """Minimum seconds between two checkpoints; 0: after each step. A signal also writes one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto: an accelerator if there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the frozen weights; auto: bfloat16 if it is faster on this machine, else float32."""
    identity_repeats: int = Field(1, ge=1, le=100)
    """Copies of each of the constitution's identity pairs among the examples. The original has about eleven."""
    exemplar_repeats: int = Field(0, ge=0, le=100)
    """Copies of each exemplar of the constitution among the examples, without internal thoughts. The original has
    none."""
    seed_repeats: int = Field(0, ge=0, le=100)
    """Copies of each seed task that has an output among the examples. The original has none."""
    max_length: int = Field(512, ge=16)
    """Maximum tokens of an example; a longer one is dropped, never truncated."""
    preflight: Literal["refuse", "warn"] = "refuse"
    """What to do if the preflight checks find errors in the rows: refuse to train, or only report them."""
    elsewhere: bool = False
    """Stop stages 3 and 4 once their examples are written: `selfalign export RUN launch` creates a folder to train in,
    and `selfalign engrave|clone RUN --adapter DIR` imports the adapter."""

    @model_validator(mode="after")
    def _check_patience(self) -> TrainingSettings:
        if self.patience is not None and not self.validation:
            raise ValueError("patience needs held-out rows: set validation, for example to 0.05")
        return self

    @model_validator(mode="after")
    def _check_elsewhere(self) -> TrainingSettings:
        if self.elsewhere and self.method == "on_policy":
            raise ValueError(
                "elsewhere supports sft only, and method is on_policy: set elsewhere to false, or method to sft"
            )
        if self.elsewhere and self.method == "dpo":
            raise ValueError(
                "elsewhere supports sft only, and method is dpo: set elsewhere to false, or train on the pairs of "
                "`selfalign export RUN dataset --format preference`"
            )
        return self

    def deciding(self) -> dict[str, Any]:
        """Return the settings that influence the trained adapter."""
        unused = {"preflight", "checkpoint_seconds", "micro_batch_tokens", "elsewhere"}
        # Without a method's settings, the others have the hashes of versions without it.
        if self.method != "dpo":
            unused |= {"beta", "sft_weight", "pair_samples", "length_ratio"}
        if self.method != "on_policy":
            unused |= {"on_policy"}
        if self.method == "sft":
            unused |= {"method"}
        unused |= {name for name in ("anchor", "exemplar_repeats", "seed_repeats") if not getattr(self, name)}
        return self.model_dump(mode="json", exclude=unused)
