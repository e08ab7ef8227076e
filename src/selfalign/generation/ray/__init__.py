"""Run engines and scorers on the workers of a Ray cluster.

`worker` runs inside a worker. On the driver, `pool` is the engine, `supervision` keeps the workers running, `jobs`
tracks their requests, and `cluster` connects to Ray.
"""
