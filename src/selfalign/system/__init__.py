"""Talk to the machine: files, signals, terminal, YAML documents, environment.

Files are published atomically (`atomic`), the first Ctrl-C stops the work soon (`signals`), people read one console
(`console`), and the documents that people write are checked strictly (`strict_yaml`).

Imports only `selfalign.errors`. Begin with `atomic`.
"""
