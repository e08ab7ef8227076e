"""Define a run: its recipe, directory, journal and ledger, and the context that a stage works in.

`recipe` is the document that describes a run, `directory` names every file, `journal` stores requests and rows in
SQLite, `context` gives a stage its engine and model, `saving` and `storage` save the run's states to shared storage.

Imports `generation` and the rooms below it. Begin with `directory`.
"""
