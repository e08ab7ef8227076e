"""Find the base model and prepare it in the form that each stage needs.

`sources` resolves a name to a GGUF file for the engine and a folder for torch; `dialogue` turns messages into tokens
and a loss mask; `conversion` and `gguf_adapter` convert between the two formats.

Imports `constitution`, `quality`, `data`, `system`. Begin with `sources`.
"""
