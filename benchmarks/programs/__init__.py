"""Programs of the kinds that SGLang's paper measures, with the prefix cache on and off, and as plain API calls.

    python -m benchmarks.programs [--workload judge ...] [--runs 2] [--small]

A workload is a program in the frontend language, its arguments drawn from a seed, and the same work written for the
`openai` client. Every module here is one workload, apart from what they share: `workload.py` (what a workload is),
`texts.py` (the arguments' text), `plain.py` (the client), `best.py` (the best possible hit rate), `in_process.py` and
`over_http.py` (the two measurements).
"""

from __future__ import annotations

from benchmarks.programs import agent, few_shot, json_decoding, judge, multi_turn_chat, tree_of_thought

WORKLOADS = {
    workload.name: workload
    for workload in (
        few_shot.WORKLOAD,
        agent.WORKLOAD,
        tree_of_thought.WORKLOAD,
        json_decoding.WORKLOAD,
        multi_turn_chat.WORKLOAD,
        judge.WORKLOAD,
    )
}
