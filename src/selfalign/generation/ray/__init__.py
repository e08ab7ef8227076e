"""Run engines and scorers on the workers of a Ray cluster.

In a worker run `Worker` of `worker` and `ScoringWorker` of `scorer`, with the engines and scorers that they load. On
the driver, `pool` is the engine, `RayScorer` of `scorer` the scorer; `supervision` keeps the workers running, `jobs`
tracks their requests, and `cluster` connects to Ray.
"""
