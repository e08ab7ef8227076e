"""Provide the command line: one module per group of verbs, `main` assembles them.

No heavy library is imported before a verb needs it. `dialogue` holds the chat, `starter` writes the files of `init`.

Imports everything. Begin with `main`.
"""
