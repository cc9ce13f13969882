"""Requests that turn text into tokens and back, and score continuations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import model_validator

from sgjax.types import RequestError
from sgjax_server.schemas.common import ApiModel, TokenIds


class TokenizeRequest(ApiModel):
    """A text, several, or a conversation as the model's template writes it."""

    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = ({"prompt": "Why is the sky blue?"},)
    model: str = "default"
    prompt: str | list[str] | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise RequestError("prompt", "give either prompt or messages")
        return self


class DetokenizeRequest(ApiModel):
    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = ({"tokens": [72, 105]},)
    model: str = "default"
    tokens: TokenIds
    skip_special_tokens: bool = True


class ScoreRequest(ApiModel):
    """How likely each label token is right after the query and each item; SGLang's `/v1/score`."""

    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"query": "The sky is", "items": [" blue", " green"], "label_token_ids": [33, 34]},
    )
    model: str = "default"
    query: str | list[int]
    items: str | list[str] | list[list[int]]
    label_token_ids: TokenIds
    apply_softmax: bool = False
    item_first: bool = False

    @property
    def item_list(self) -> list[str] | list[list[int]]:
        return [self.items] if isinstance(self.items, str) else self.items

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.item_list:
            raise RequestError("items", "is empty")
        if isinstance(self.query, str) != isinstance(self.item_list[0], str):
            raise RequestError("items", "must be texts when the query is one, and token ids when it is token ids")
        if self._labels_differ and len(self.label_token_ids) != len(self.item_list):
            raise RequestError(
                "label_token_ids", f"has {len(self.label_token_ids)} lists for {len(self.item_list)} items"
            )
        if not (self.label_token_ids and all(self.labels)):
            raise RequestError("label_token_ids", "is empty, or holds an empty list")
        return self

    @property
    def _labels_differ(self) -> bool:
        return bool(self.label_token_ids) and isinstance(self.label_token_ids[0], list)

    @property
    def labels(self) -> list[list[int]]:
        """The label tokens of each item."""
        given: Any = self.label_token_ids
        return given if self._labels_differ else [given] * len(self.item_list)
