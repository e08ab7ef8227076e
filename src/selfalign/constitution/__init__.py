"""The constitution: the only texts that a human writes. One YAML document, loaded, rendered, checked and compared."""

from selfalign.constitution.document import (
    CITATION,
    Assistant,
    Constitution,
    Exemplar,
    IdentityPair,
    InferencePrompts,
    Layout,
    Principle,
    Probe,
    QuestionType,
    SeedTask,
    Turn,
)
from selfalign.constitution.reading import load, load_seeds

__all__ = [
    "CITATION",
    "Assistant",
    "Constitution",
    "Exemplar",
    "IdentityPair",
    "InferencePrompts",
    "Layout",
    "Principle",
    "Probe",
    "QuestionType",
    "SeedTask",
    "Turn",
    "load",
    "load_seeds",
]
