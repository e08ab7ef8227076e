"""Show a run in the browser: every row of every ledger, live while it is running.

Begin with `routes`. `index` copies the run's rows into an SQLite index, `query` and `compare` read it, `row_detail`
shows one row in full, `progress` shows how far the run is.
"""
