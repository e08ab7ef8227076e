"""selfalign: principle-driven self-alignment of language models from scratch (SELF-ALIGN, arXiv 2305.03047)."""

__version__ = "0.1.0"
