"""Hold the version of the package, for everything that records it."""

__version__ = "0.2.0"
