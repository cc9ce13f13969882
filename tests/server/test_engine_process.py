"""What the engine's process does with messages."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq
from sgjax_server.processes import messages
from sgjax_server.processes.engine_process import EngineServer, Outbox, freeze_what_stays
from sgjax_server.processes.messages import Abort, Call, Forget, Started, Submit

from sgjax.types import Request


class _Engine:
    """Begins everything at once, and ends nothing but what is aborted."""

    def __init__(self) -> None:
        self.submitted: list[str] = []
        self.aborted: list[str] = []

    def submit_tokens(self, request: Request, register: Callable[[], None], *, arrival_s: float) -> None:
        self.submitted.append(request.rid)
        register()

    def call(self, function: Callable[[], Any]) -> Any:
        return function()

    def abort(self, rid: str, *_: Any, only_if: Callable[[], bool] | None = None) -> None:
        if only_if is None or only_if():
            self.aborted.append(rid)


def _submit(worker: int, rid: str) -> Submit:
    return Submit(worker, Request(rid=rid, input_ids=(1,)), 0.0)


def test_a_lost_process_takes_its_requests_with_it_and_those_still_on_their_way(tmp_path: Path):
    messages_of_both = _submit(0, "a"), Forget(0), _submit(0, "late"), Call(0, 0, "stats", []), _submit(1, "b")
    with zmq.Context() as context, context.socket(zmq.PULL) as inbox:
        inbox.bind(messages.worker_endpoint(str(tmp_path), 0, 1))
        engine, outbox = _Engine(), Outbox(context, str(tmp_path), 0)
        server = EngineServer(engine, outbox, reports=None)  # type: ignore[arg-type]
        for message in messages_of_both:
            server.handle(message)
        server.close()
        assert engine.submitted == ["a", "b"]
        assert engine.aborted == ["a"]
        assert inbox.poll(5000)
        assert messages.decode_from_engine(inbox.recv()) == Started("b")
        outbox.started("a")  # what the engine still says of it goes nowhere
        outbox.lose(1)


def test_an_id_that_a_process_was_refused_stays_another_ones(tmp_path: Path):
    with zmq.Context() as context, context.socket(zmq.PULL) as inbox:
        inbox.bind(messages.worker_endpoint(str(tmp_path), 0, 0))
        engine, outbox = _Engine(), Outbox(context, str(tmp_path), 0)
        server = EngineServer(engine, outbox, reports=None)  # type: ignore[arg-type]
        for message in (_submit(0, "a"), Abort("a", worker=1), Abort("unknown", worker=1)):
            server.handle(message)
        assert engine.aborted == []
        for message in (Abort("a", worker=0), Abort("a")):  # its own process; any, as a cancelled response's
            server.handle(message)
        assert engine.aborted == ["a", "a"]
        server.close()
        outbox.lose(0)


class _CompilingEngine:
    def __init__(self) -> None:
        self.compiled = threading.Event()

    def wait_until_compiled(self) -> None:
        self.compiled.wait()


def test_collections_leave_out_what_was_there_when_all_was_compiled():
    try:
        engine = _CompilingEngine()
        compiling = freeze_what_stays(engine)  # type: ignore[arg-type]
        num_before = gc.get_freeze_count()
        assert num_before > 100_000
        of_compiling = [[] for _ in range(1000)]
        engine.compiled.set()
        compiling.join()
        assert gc.get_freeze_count() >= num_before + len(of_compiling)
        assert not any(one is of_compiling for one in gc.get_objects())
    finally:
        gc.unfreeze()
