"""Hold the records that cross between stages, and read rows from other formats.

`records` defines the lines of a run's JSONL files and reads and writes them. `user_data` reads the user's rows: from
`files` (with `compression` and `json_array`) or `tables`, in one of the `formats` (with `dialogues`, `transcripts` and
`message_trees`). `prompt_text` represents a prompt as text and control tokens.

Imports `system`. Begin with `records`.
"""
