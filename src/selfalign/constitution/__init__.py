"""Load, render, check and compare the constitution, the human-written text of a run.

- `document` defines the parts; `loading` reads the YAML; `rendering` writes stage 2's prompt.
- `citations` checks the numbers and names of the principles that internal thoughts cite.
- `leaks` derives the rules for texts that must not leak into a response.
- `lint`, `diff`, `editing` and `import_original` serve the commands `selfalign constitution ...`.

Imports `quality`, `data`, `system`. Begin with `document`.
"""

from selfalign.constitution.document import (
    Assistant,
    Constitution,
    Exemplar,
    IdentityPair,
    Layout,
    Principle,
    Probe,
    QuestionType,
    SeedTask,
    SystemPrompts,
    Turn,
)
from selfalign.constitution.loading import load, load_seeds
from selfalign.data.text import CITATION

__all__ = [
    "CITATION",
    "Assistant",
    "Constitution",
    "Exemplar",
    "IdentityPair",
    "Layout",
    "Principle",
    "Probe",
    "QuestionType",
    "SeedTask",
    "SystemPrompts",
    "Turn",
    "load",
    "load_seeds",
]
