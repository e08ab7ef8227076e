"""Load, render, check and compare constitutions.

A constitution is all human-written text of a run, except the seed tasks.

- `document` defines the parts of a constitution, `loading` reads it from YAML, and `rendering` turns it into the prompt
  of stage 2.
- `citations` finds the principles that internal thoughts cite: by name in a model's thoughts, by number and name in
  exemplars.
- `leaks` derives the texts that must not leak into a response.
- `lint`, `diff`, `editing` and `import_original` implement the commands `selfalign constitution ...`.

Imports `quality`, `data`, `system`. Begin with `document`.
"""

from selfalign.constitution.document import Constitution, Principle, Probe, QuestionType, SeedTask
from selfalign.constitution.loading import load, load_seeds

__all__ = ["Constitution", "Principle", "Probe", "QuestionType", "SeedTask", "load", "load_seeds"]
