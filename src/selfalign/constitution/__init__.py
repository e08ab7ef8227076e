"""Load, render, check and compare the constitution, the only text that people write.

`document` defines its parts, `loading` reads the YAML, `rendering` writes the prompt, `citations` checks the principles
that internal thoughts cite, `leaks` derives what must not reach a response, `lint` finds faults.

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
