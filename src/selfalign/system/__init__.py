"""Use the machine: atomic files, signals, the terminal, YAML documents, the environment.

`atomic` publishes files, `signals` stops the work on Ctrl-C, `console` prints for people, `strict_yaml` reads the
documents that people edit, `environment` describes the machine, `clock` and `format` handle durations.

Imports only `selfalign.errors`. Begin with `atomic`.
"""
