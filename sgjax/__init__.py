"""sgjax: a serving engine for language models in JAX."""

__version__ = "0.1.0"
