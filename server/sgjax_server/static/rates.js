// What changes between two snapshots: rates, and the time of a step.

/** @returns null for the first snapshot, or after a restart of the engine */
export function rates(before, now) {
  if (!before) return null;
  const took = now.at_s - before.at_s;
  const gained = (name) => now.stats.counters[name] - before.stats.counters[name];
  if (took <= 0 || gained("generated_tokens") < 0) return null;
  const steps = gained("prefill_steps") + gained("decode_steps");
  const wasBusy = before.stats.num_running > 0 && now.stats.num_running > 0;
  return {
    generated: gained("generated_tokens") / took,
    prompt: (gained("prompt_tokens") - gained("cached_tokens")) / took,
    stepS: wasBusy && steps > 0 ? took / steps : null, // else it would count pauses too
    hitRate: gained("prompt_tokens") > 0 ? gained("cached_tokens") / gained("prompt_tokens") : null,
  };
}
