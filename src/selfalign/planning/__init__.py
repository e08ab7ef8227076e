"""Estimate what a run takes: requests, tokens, time, memory, here and on a cluster.

`sizes` counts requests and tokens, `costs` turns them into time and memory on this machine, `capacity` on others;
`prepare` checks recipe, constitution and model before there is a run.

Imports `evaluation`, `run` and the rooms below them. Begin with `sizes`.
"""
