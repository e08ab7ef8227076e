"""Filter prompts and responses, and measure sets of texts.

- `instruction_filters` and `novelty` decide on the prompts of stage 1.
- `response_filters` decides on the responses of stages 2 and 4, with `refusals`, `safety` and `language`;
  `wordings` searches for the wordings in assets/wordings.yaml.
- `contamination` finds overlap of prompts and responses with benchmarks.
- `duplicates` and `diversity` measure for the report; they drop nothing.

To add a filter, write a pure function in `instruction_filters` or `response_filters`, and its threshold in
`filter_settings` (the recipe's `filters`; assets/filters.yaml has the values of `paper`). Imports `data`, `system`.
Begin with `response_filters`.
"""
