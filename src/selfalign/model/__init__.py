"""Find the base model and prepare it in the form that each stage needs.

`sources` finds the model that the recipe names, with `hub` for those on the hub; `base_model` represents it and creates
a GGUF's torch weights and tokenizer with `conversion`; `fake` stands in for it on the fake engine. `dialogue` turns
messages into token ids and a loss mask; `plain_lora` reads an adapter's settings and `gguf_adapter` converts it.

Imports `constitution`, `quality`, `data`, `system`. Begin with `base_model`.
"""
