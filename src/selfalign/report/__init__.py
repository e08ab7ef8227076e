"""Describe a run for people: the HTML page, the terminal tables, model cards.

`page` writes report.json and the page from it; `terminal` prints the same numbers; `model_card` describes a model.

Imports `planning`, `evaluation`, `run` and the rooms below them. Begin with `page`.
"""
