"""Decide whether a text is worth keeping: filters, exact novelty, duplicates, diversity.

Every decision is a pure function of its input. `thresholds` holds the settings (the recipe's `filters`);
`instruction_filters` serve stage 1, `response_filters` stages 2 and 4, `novelty` the rounds of stage 1.

Imports `data`, `system`. Begin with `response_filters`.
"""
