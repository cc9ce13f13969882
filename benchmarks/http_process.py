"""Processor time of the HTTP process a streamed token, with a stand-in for the engine: the HTTP path and nothing else.

    python -m benchmarks.http_process [--beside CHECKOUT] [--out benchmarks/results/http_process.json]

`--streams` completions run at a time; every `--step-ms` the stand-in gives each of them a token, as an engine would.
With `--beside` the HTTP process of another checkout of this repository takes turns with this one's, in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import zmq
from sgjax_server.config import ServerConfig
from sgjax_server.processes import messages
from sgjax_server.processes.lines import EngineState, LaunchHttp, encode_line
from sgjax_server.processes.messages import Abort, Started, Step, Submit

from benchmarks.load import Client, closed_loop
from benchmarks.run_all import describe
from benchmarks.workloads import Prompts
from sgjax.config import EngineConfig
from sgjax.engine.info import EngineInfo
from sgjax.models.checkpoint.embedded import fetch_embedded
from sgjax.text import load_tokenizer
from sgjax.types import FinishReason, Receipt, Request, TokenEvent

HERE = Path(__file__).parent.parent
PROMPT_TOKENS, OUTPUT_TOKENS = 128, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="of each process (default: %(default)s)")
    parser.add_argument("--streams", type=int, default=64, help="requests at a time (default: %(default)s)")
    parser.add_argument("--step-ms", type=float, default=20.0, help="between two tokens (default: %(default)s)")
    parser.add_argument("--beside", type=Path, help="another checkout")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    checkouts = [HERE] if args.beside is None else [HERE, args.beside.resolve()]
    found: dict[Path, list[float]] = {checkout: [] for checkout in checkouts}
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(served(checkout, args.streams, args.step_ms / 1e3)) for checkout in checkouts]
        for number in range(args.rounds + 1):
            for checkout, (client, pid) in zip(checkouts, running, strict=True):
                us = us_per_token(client, pid, args.streams)
                print(f"{checkout} {us:.1f} us a token", file=sys.stderr, flush=True)
                if number:  # the first of each is to warm up
                    found[checkout].append(us)
    figures = {
        "http_cpu_us": statistics.median(found[HERE]),
        "runs": [round(us, 1) for us in found[HERE]],
    }
    if args.beside is not None:
        others = found[checkouts[1]]
        figures["beside_http_cpu_us"] = statistics.median(others)
        figures["beside_runs"] = [round(us, 1) for us in others]
        figures["of_beside"] = statistics.median(a / b for a, b in zip(found[HERE], others, strict=True))
    settings = {"rounds": args.rounds, "streams": args.streams, "step_ms": args.step_ms}
    result = {**describe(), **settings, "figures": figures}
    print(json.dumps(result, indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def served(checkout: Path, num_streams: int, step_s: float) -> Iterator[tuple[Client, int]]:
    """A client and the process id of the HTTP process of a checkout, over a stand-in."""
    paths = os.pathsep.join([str(checkout), str(checkout / "server")])
    command = [sys.executable, "-m", "sgjax_server.processes.http_process"]
    with (
        tempfile.TemporaryDirectory(prefix="sgjax-bench-") as folder,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        listener.listen(512)
        StandIn(folder, num_streams, step_s).start()
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
            pass_fds=(listener.fileno(),),
            cwd=folder,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            launch = LaunchHttp(ServerConfig(), folder, 0, listener.fileno(), started_s=int(time.time()))
            process.stdin.write(encode_line(launch) + encode_line(EngineState("ready", info=_info())))
            process.stdin.flush()
            process.stdout.readline()  # it serves
            yield Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}"), process.pid
            process.stdin.close()  # which ends it


def us_per_token(client: Client, pid: int, num_streams: int) -> float:
    prompts = Prompts().draw(num_streams, PROMPT_TOKENS)
    before = _cpu_s(pid)
    asyncio.run(closed_loop(client, prompts, OUTPUT_TOKENS, num_streams))
    return (_cpu_s(pid) - before) / (num_streams * OUTPUT_TOKENS) * 1e6


class StandIn(threading.Thread):
    """Says what an engine would: that it has queued requests, and a token for each of them in every step.

    The tokens are those of a text, from a place of its own for each request: like a model's, a few of them are most.
    Steps begin when all streams are there, so that every one of them holds that many tokens.
    """

    def __init__(self, folder: str, num_streams: int, step_s: float):
        super().__init__(daemon=True)
        context = zmq.Context.instance()
        self._inbox = context.socket(zmq.PULL)
        self._inbox.bind(messages.engine_endpoint(folder, 0))
        self._out = context.socket(zmq.PUSH)
        self._out.set_hwm(0)
        self._out.connect(messages.worker_endpoint(folder, 0, 0))
        self._num_streams = num_streams
        self._step_s = step_s
        self._running: dict[str, tuple[Request, int, list[int]]] = {}  # with the place in the text, and what was said
        self._text = load_tokenizer(fetch_embedded()).encode((HERE / "README.md").read_text(encoding="utf-8"))
        self._rng = random.Random(0)

    def run(self) -> None:
        next_s = 0.0
        while True:
            self._listen_until(next_s)
            has_begun = any(tokens for _, _, tokens in self._running.values())
            if has_begun or len(self._running) == self._num_streams:
                self._out.send(messages.encode(Step([self._event(rid) for rid in list(self._running)])))
            next_s = time.monotonic() + self._step_s

    def _listen_until(self, end_s: float) -> None:
        while self._inbox.poll(max(0, int((end_s - time.monotonic()) * 1e3))):
            match messages.decode_to_engine(self._inbox.recv()):
                case Submit(request=request):
                    self._running[request.rid] = request, self._rng.randrange(len(self._text)), []
                    self._out.send(messages.encode(Started(request.rid)))
                case Abort(rid=rid):
                    self._running.pop(rid, None)

    def _event(self, rid: str) -> TokenEvent:
        request, start, tokens = self._running[rid]
        tokens.append(self._text[(start + len(tokens)) % len(self._text)])
        event = TokenEvent(rid, 0, tokens[-1:])
        if len(tokens) == request.sampling.max_new_tokens:
            event.finish = FinishReason("length")
            event.receipt = Receipt(prompt_tokens=len(request.input_ids), completion_tokens=len(tokens))
            del self._running[rid]
        return event


def _info() -> EngineInfo:
    return EngineInfo(
        config=EngineConfig(),
        model_name="stand-in",
        architecture="none",
        vocab_size=49152,
        context_length=2048,
        generation_defaults={},
        tokenizer_source=str(fetch_embedded()),
        eos_token_ids=(),
        num_pages=100_000,
        kv_cache_bytes=0,
        startup_s=0.0,
        device="none",
    )


def _cpu_s(pid: int) -> float:
    """Of all threads, to the nanosecond (Linux)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


if __name__ == "__main__":
    main()
