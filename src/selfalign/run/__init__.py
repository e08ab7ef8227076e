"""Hold one run: recipe, directory, journal, ledger, and what a stage gets of them.

`recipe` is the document that describes a run, `directory` names every file, `journal` stores requests and rows in
SQLite, `context` gives a stage its engine and model, `saving` and `storage` save the run's states elsewhere.

Imports `generation` and the rooms below it. Begin with `directory`.
"""
