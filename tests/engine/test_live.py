"""What people see of a working engine."""

from __future__ import annotations

import sgjax

from .test_engine import wait_for


def test_live_shows_batch_queue_and_tree(make_engine):
    engine: sgjax.Engine = make_engine(max_running_requests=2, max_total_tokens=512)
    prompt = list(range(5, 45))
    handles = [
        engine.submit(
            sgjax.Request(
                rid=str(i), input_ids=(*prompt, i), sampling=sgjax.SamplingParams(max_new_tokens=60, ignore_eos=True)
            )
        )
        for i in range(3)
    ]
    wait_for(lambda: engine.stats().num_running == 2 and engine.live(0).sequences[1].completion_tokens > 0)
    live = engine.live(10)
    running, waiting = live.sequences[:2], live.sequences[2:]
    assert [seq.is_running for seq in live.sequences] == [True, True, False]
    assert len(waiting) == live.stats.num_waiting
    assert all(seq.prompt_tokens == 41 and seq.computed_tokens >= 41 for seq in running)
    assert running[1].cached_tokens > 0
    shared = live.tree.nodes[0]
    assert (shared.num_users, shared.first_tokens[:3]) == (2, (5, 6, 7))
    assert live.stats.cache.num_nodes == live.tree.num_nodes
    for handle in handles:
        engine.abort(handle.request.rid)
    wait_for(lambda: not engine.live(0).sequences)
    assert all(node.num_users == 0 for node in engine.live(10).tree.nodes)
