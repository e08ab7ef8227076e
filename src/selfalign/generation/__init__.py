"""Answer requests: the generation loop, engines, scorers, and workers of a Ray cluster.

`loop` sends requests to an engine and stores each raw output before anyone reads it. `engines/` holds the engines,
`scoring/` computes log-probabilities of given texts, `ray/` runs both on a cluster (see its docstring for what runs in
a worker), `guided` builds a request under the constitution and parses its output, `settings` is the recipe's `engine`.

Imports `training`, `model` and the rooms below them. Begin with `loop`.
"""
