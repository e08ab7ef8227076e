"""Run engines and scorers on the workers of a Ray cluster.

`worker` runs inside a worker; `pool` is the driver's side.
"""
