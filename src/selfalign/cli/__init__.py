"""Provide the command line: one module per group of verbs.

`main` defines the application; nothing heavy is imported before a verb needs it.

Imports everything. Begin with `main`.
"""
