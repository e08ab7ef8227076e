"""Access the machine: files, signals, terminal, YAML documents, environment.

`atomic` publishes files, `signals` stops work on Ctrl-C, `console` prints messages and progress, `schedule` estimates
the time left of a run, `streams` makes the
standard streams fit every console, `strict_yaml` reads documents that users edit, `environment` describes the machine,
`clock` and `format` measure and format durations.

Imports only `selfalign.errors`. Begin with `atomic`.
"""
