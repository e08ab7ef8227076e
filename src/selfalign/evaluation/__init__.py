"""Measure models: held-out prompts, behaviour, benchmarks and probes, with judges and confidence intervals.

Imports `run` and the rooms below it. Begin with `evaluate`, the entry of every evaluation of tasks.

To add a benchmark, write one module in `tasks/` (an item, its reader, and its forms) and add it to the dictionary
`TASKS`; the docstring of `tasks` says more. The modules:

- `records` defines the lines of the result files.
- `benchmarks` loads items from files, folders and the hub; `prompting` turns them into prompts.
- `models` resolves the models under comparison.
- `scoring` scores texts by log-likelihood; `asking` generates responses; `judges` judges them by a model.
- `comparison` and `statistics` turn rows into scores; `results` stores rows, scores and the usage log.
- `endpoints` names the primary endpoints; `seeds` compares runs of one recipe with different seeds.
- `tasks/heldout` is the stage `evaluate` of a run; `tasks/probes` is `selfalign constitution test`.
"""
