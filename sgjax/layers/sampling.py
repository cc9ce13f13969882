"""Signatures that sgjax/engine/steps.py calls (whoever implements this file: keep exactly these names and argument orders)."""

# SamplingRows(temperature, top_k, top_p, min_p, seed, position)                  registered dataclass
# PenaltyRows(frequency, presence, repetition, bias_ids, bias_values, blocked_ids) registered dataclass
# TokenCounts(output_counts (slots, V) int16/int32, in_prompt (slots, V) bool)    registered dataclass;
#   TokenCounts.zeros(num_slots, vocab_size)
# TokenLogprobs(chosen (S,), top_values (S, k), top_ids (S, k), asked (S, A))     registered dataclass
# sample(logits (S, V) f32, rows) -> int32 (S,)
# adjust(logits, penalties, counts, slots) -> logits       slots int32 (S,), out of range rows: no counts
# count_tokens(counts, slots, tokens) -> counts            out of range slots are dropped
# set_counts(counts, slot, output_counts (V,) int32, in_prompt (V,) bool) -> counts
# token_logprobs(logits, tokens, asked_ids (S, A), num_top: int) -> TokenLogprobs
# prompt_logprobs(hidden (T, D), targets (T,), asked_ids (T, A), logits_fn(block (n, D)) -> (n, V), num_top) -> TokenLogprobs with T rows
