"""Hold the records that cross between stages, and read rows from other formats.

`records` defines the lines of a run's JSONL files and reads and writes them. `formats`, `tables` and `user_data` read
the user's rows. `prompt_text` represents a prompt as text and control tokens.

Imports `system`. Begin with `records`.
"""
