"""Report a run: tables in the terminal, report.json and an HTML page, and model cards.

`page` writes report.json and the page, from what `run_summary`, `data_quality`, `principles`, `scores` and
`side_by_side` collect; `figures` chooses the plots, `charts` and `plots` draw them. `terminal` prints the same numbers.

Imports `planning` and the rooms below it. Begin with `page`.
"""
