"""Decide whether a text is worth keeping, and measure sets of texts.

- `instruction_filters`: the prompts of stage 1; `novelty`: whether a prompt is new.
- `response_filters`: the responses of stages 2 and 4, with `refusals`, `safety` and `language`.
- `contamination`: overlap of prompts and responses with benchmarks.
- `duplicates`, `diversity`: measures for the report; they drop nothing.

To add a filter, write a pure function in `instruction_filters` or `response_filters` and its threshold in
`filter_settings`, the recipe's `filters`. Imports `data`, `system`. Begin with `response_filters`.
"""
