"""Times one program called step by step over HTTP against the same program sent whole to `/run_program`.

    python -m benchmarks.program_on_server [--runs 9] [--delays-ms 0 5 20] [--out FILE] [-- flags of sgjax serve]

The program is a conversation of eight short generations, a fork of two and a choice, greedy, on a server process of its
own. `--delays-ms` are artificial: the client sleeps that long before every HTTP request, in place of a network's round
trip (a real one costs more, since each request opens a connection). Both ways alternate, on an emptied prefix cache
each time, and must give the same text. Two models: the embedded one, and one of two small layers with random weights,
whose steps take next to no time, so that what is left is the cost of the calls.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import sgjax as sgl
from benchmarks.run_all import describe
from benchmarks.served import ServerProcess
from sgjax.lang.backends.http import JsonClient
from sgjax.models.checkpoint.embedded import fetch_embedded

NUM_TURNS, TOKENS_PER_TURN, NUM_BRANCHES = 8, 4, 2
TINY = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 49152,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "eos_token_id": 2,
}
SAMPLING: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "max_new_tokens": TOKENS_PER_TURN}


@sgl.function
def interview(s, topic):
    """The measured program. It can be traced: its only loop is over a number that is known."""
    s += sgl.system("You answer in a few words.") + sgl.user(f"I want to learn about {topic}. Where do I begin?")
    for turn in range(NUM_TURNS):
        s += sgl.assistant(sgl.gen(f"answer{turn}")) + sgl.user("And then?")
    branches = s.fork(NUM_BRANCHES)
    branches += lambda i: sgl.assistant(f"Reason {i + 1}: " + sgl.gen("reason"))
    branches.join()
    s += sgl.assistant("All in all it is " + sgl.select("verdict", choices=["easy", "hard", "neither"]))


class SlowClient(JsonClient):
    """Counts its requests, and sleeps before each."""

    def __init__(self, base_url: str, delay_s: float):
        super().__init__(base_url, timeout_s=600)
        self.num_requests = 0
        self._delay_s = delay_s
        self._lock = threading.Lock()

    def _open(self, path: str, body: Any, method: str) -> Any:
        with self._lock:
            self.num_requests += 1
        time.sleep(self._delay_s)
        return super()._open(path, body, method)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9, help="counted runs of each way (default: %(default)s)")
    parser.add_argument("--delays-ms", type=float, nargs="+", default=[0, 5, 20], help="added before every request")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("serve_flags", nargs="*", help="after --: flags for sgjax serve")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    figures = {}
    with tempfile.TemporaryDirectory(prefix="sgjax-bench-") as folder:
        for name, flags in (("embedded", []), ("tiny", tiny_model(Path(folder)))):
            print(name, flush=True)
            figures[name] = serve_and_measure(Path(folder), [*flags, *args.serve_flags], args.delays_ms, args.runs)
    result = {
        **describe(),
        "device": "cpu",
        "load_average": {"before": round(load, 2), "after": round(os.getloadavg()[0], 2)},
        "serve_flags": args.serve_flags,
        "runs": args.runs,
        "program": {
            "chained_generations": NUM_TURNS,
            "tokens_each": TOKENS_PER_TURN,
            "branches": NUM_BRANCHES,
            "selects": 1,
        },
        "delay": "slept by the client before every HTTP request, in place of a network",
        "figures": figures,
    }
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def tiny_model(folder: Path) -> list[str]:
    """Flags of `sgjax serve` for a model of next to no work, with the embedded model's tokenizer."""
    (folder / "config.json").write_text(json.dumps(TINY))
    return [
        *("--model-path", str(folder)),
        *("--tokenizer-path", str(fetch_embedded())),
        *("--load-format", "dummy"),
    ]


def serve_and_measure(folder: Path, flags: list[str], delays_ms: list[float], runs: int) -> list[dict[str, Any]]:
    """Figures of one model, an item per delay."""
    log = folder / "server.log"
    try:
        with ServerProcess(["--context-length", "2048", *flags], log) as server:
            server.wait_until_idle()
            return [measure(server.client.base_url, delay, runs) for delay in delays_ms]
    except BaseException:
        print(log.read_text(errors="replace")[-4000:], file=sys.stderr)
        raise


def measure(base_url: str, delay_ms: float, runs: int) -> dict[str, Any]:
    """Both ways in turn; the first pair is not counted."""
    times: dict[bool, list[float]] = {False: [], True: []}
    requests: dict[bool, int] = {}
    endpoint = sgl.RuntimeEndpoint(base_url)
    for number in range(runs + 1):
        texts = set()
        for on_server in (False, True) if number % 2 else (True, False):
            seconds, requests[on_server], text = run_once(endpoint, delay_ms / 1e3, f"subject {number}", on_server)
            texts.add(text)
            if number:
                times[on_server].append(seconds)
        assert len(texts) == 1, f"the two ways differ: {texts}"
    steps, whole = (statistics.median(times[on_server]) for on_server in (False, True))
    ratio = statistics.median(a / b for a, b in zip(times[False], times[True], strict=True))
    figure = {
        "added_delay_ms_per_request": delay_ms,
        "step_by_step": _summary(times[False], requests[False]),
        "on_server": _summary(times[True], requests[True]),
        "median_of_ratios": round(ratio, 3),
    }
    print(
        f"+{delay_ms:g} ms: {requests[False]} requests {steps * 1e3:.0f} ms, "
        f"{requests[True]} request {whole * 1e3:.0f} ms, ratio {ratio:.2f}",
        flush=True,
    )
    return figure


def run_once(endpoint: sgl.RuntimeEndpoint, delay_s: float, topic: str, on_server: bool) -> tuple[float, int, str]:
    """Seconds, HTTP requests, and the text. An endpoint's first run also asks once how the server treats BOS."""
    endpoint.flush_cache()
    plain, client = endpoint._client, SlowClient(endpoint.base_url, delay_s)
    endpoint._client = client
    try:
        start = time.perf_counter()
        text = interview.run(topic=topic, backend=endpoint, on_server=on_server, **SAMPLING).text()
        return time.perf_counter() - start, client.num_requests, text
    finally:
        endpoint._client = plain


def _summary(times: list[float], num_requests: int) -> dict[str, Any]:
    ordered = sorted(time * 1e3 for time in times)
    return {
        "http_requests": num_requests,
        "wall_ms": round(statistics.median(ordered), 1),
        "min_ms": round(ordered[0], 1),
        "max_ms": round(ordered[-1], 1),
    }


if __name__ == "__main__":
    main()
