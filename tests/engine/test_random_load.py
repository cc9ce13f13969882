"""Five hundred random requests with random cancellations leave every page and slot accounted for."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest

from sgjax import Request, SamplingParams


@pytest.mark.parametrize("settings", [{}, {"disable_radix_cache": True}], ids=["cache", "no-cache"])
def test_every_page_is_accounted_for(make_engine, settings):
    engine = make_engine(max_total_tokens=1024, context_length=512, chunked_prefill_size=64, **settings)
    rng = random.Random(0)
    ids = np.random.default_rng(0)
    prefixes = [ids.integers(10, 49000, n).tolist() for n in (20, 64, 130)]

    def make_request(i: int) -> Request:
        prompt = rng.choice([*prefixes, []]) + ids.integers(10, 49000, rng.randint(1, 80)).tolist()
        sampling = SamplingParams(
            max_new_tokens=rng.choice([0, 1, 5, 20, 40]),
            temperature=rng.choice([0.0, 1.0]),
            n=rng.choice([1, 1, 1, 2]),
            ignore_eos=rng.random() < 0.5,
            stop=rng.choice([(), (" a",), ("e",)]),
        )
        extra_key = rng.choice(["", "", "tenant"])
        return Request(rid=str(i), input_ids=tuple(prompt), sampling=sampling, extra_key=extra_key)

    async def run(request: Request, cancel_after: int | None) -> tuple[int, int]:
        """Numbers of finished samples and of deltas."""
        finished = deltas = 0
        async for delta in engine.submit(request):
            deltas += 1
            finished += delta.finish is not None
            if cancel_after is not None and deltas == cancel_after:
                engine.abort(request.rid)
        return finished, deltas

    async def main() -> list[tuple[int, int]]:
        tasks = []
        for i in range(500):
            cancel_after = rng.randint(1, 10) if rng.random() < 0.3 else None
            request = requests[i]
            tasks.append(asyncio.create_task(run(request, cancel_after)))
            if rng.random() < 0.1:
                engine.abort(request.rid)
            if i % 20 == 0:
                await asyncio.sleep(0.01)
        return await asyncio.gather(*tasks)

    requests = [make_request(i) for i in range(500)]
    results = asyncio.run(main())
    assert [finished for finished, _ in results] == [request.sampling.n for request in requests]
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.counters.num_finished == sum(request.sampling.n for request in requests)
    engine.check()
    engine.flush_cache()
    assert engine.stats().cache.num_free == stats.cache.num_pages
