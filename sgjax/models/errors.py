"""What can be wrong with a model, as opposed to its files (`CheckpointError`)."""

from __future__ import annotations


class ModelError(ValueError):
    """An architecture, or a feature of one, that sgjax does not have. The message names what was found."""
