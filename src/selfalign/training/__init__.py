"""Train a LoRA adapter: rows to batches, forward pass, loss, optimiser steps, checkpoints.

`loop` is the trainer. `loss` computes the cross-entropy, `forward` runs rows through the model, `batches` groups rows
into batches. `preflight` checks every row before the first step, `adapter_import` imports an adapter that was trained
elsewhere, `settings` defines the recipe's `engrave`.

Imports `model` and the rooms below it. Begin with `loop`.
"""
