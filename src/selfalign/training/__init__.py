"""Train a LoRA adapter: rows to batches, forward pass, loss, loop, checkpoint.

`loop` is the trainer; `loss` the cross-entropy over a large vocabulary; `batches` and `forward` decide what is computed
together; `preflight` checks every row before the first step; `settings` is the recipe's `engrave`.

Imports `model` and the rooms below it. Begin with `loop`.
"""
