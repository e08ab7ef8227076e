"""Measure models: held-out prompts, behaviour, benchmarks, judges, statistics.

Imports `run` and the rooms below it. Begin with `compare`.
"""
