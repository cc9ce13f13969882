"""Explains what the cache gave a prompt, and why it did not give the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sgjax.types import PromptParts

if TYPE_CHECKING:
    from sgjax.cache.manager import CacheManager, Prefix
    from sgjax.engine.sequence import Sequence


def explain_prompt(cache: CacheManager, seq: Sequence, prefix: Prefix) -> PromptParts:
    """The parts of a prompt whose cached prefix is `prefix`, at its first admission."""
    num_prompt = seq.num_prompt
    # Whole pages before the last known token, which is computed for its logits: no cache could give more.
    shareable = min((seq.num_tokens - 1) // cache.page_size * cache.page_size, num_prompt)
    found = min(prefix.num_tokens, num_prompt)
    parts = PromptParts(last_token=int(seq.num_tokens == num_prompt))
    parts.page_remainder = num_prompt - shareable - parts.last_token
    if not cache.enabled:
        parts.cache_disabled = shareable
        return parts
    parts.cached = min(seq.num_cached_at_arrival, found)
    parts.shared_in_flight = found - parts.cached
    tokens, present = seq.tokens[:shareable], prefix
    if seq.prompt_logprobs is not None:  # they need logits, for which also cached tokens are computed
        present = cache.match(tokens, seq.request.extra_key)
    parts.logprobs_recomputed = min(present.num_tokens, shareable) - found
    parts.evicted = cache.num_evicted(tokens, present, seq.request.extra_key)
    parts.not_in_cache = shareable - found - parts.logprobs_recomputed - parts.evicted
    return parts
