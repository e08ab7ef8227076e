"""Provide the command line: one module per group of verbs, which `main` assembles.

No heavy library is imported before a verb needs it. `dialogue` implements the chat, `starter` writes the files of
`selfalign init`.

Imports all other rooms. Begin with `main`.
"""
