"""Hold the records that cross between stages, and read rows from other formats.

`records` defines every line of a JSONL file of a run. `formats` and `user_data` read the rows that users bring;
`prompt_text` represents a prompt as text and control tokens.

Imports `system`. Begin with `records`.
"""
