"""Estimate the requests, tokens, time and memory of a run, on this machine and on a cluster.

`sizes` counts requests and tokens; `costs` turns them into time and memory on this machine, `capacity` on a cluster of
GPUs (`clusters`, `hardware`). `prepare` checks recipe, constitution and model before a run.

Imports `evaluation`, `run` and the rooms below them. Begin with `sizes`.
"""
