"""Servers that speak the APIs of others on 127.0.0.1, say what a test tells them to, and keep what they were sent."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclasses.dataclass(frozen=True)
class Refusal:
    """An answer that is an error; with `after` set, one within a stream of text."""

    status: int
    kind: str
    message: str
    after: str | None = None


class ApiServer(ThreadingHTTPServer):
    """Gives its answers in order."""

    daemon_threads = True

    def __init__(self, answers: Sequence[str | Refusal], handler: type[ApiHandler]):
        super().__init__(("127.0.0.1", 0), handler)
        self.answers = deque(answers)
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []  # their names in lower case

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_text(self) -> str:
        answer = self.answers.popleft()
        assert isinstance(answer, str)
        return answer

    def refusal(self) -> Refusal | None:
        """Takes the next answer if it is one."""
        if self.answers and isinstance(self.answers[0], Refusal):
            return self.answers.popleft()  # type: ignore[return-value]
        return None


class ApiHandler(BaseHTTPRequestHandler):
    server: ApiServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client has left the stream
            self.answer(body)

    def answer(self, body: dict[str, Any]) -> None:
        raise NotImplementedError

    def send_json(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Retry-After-Ms", "1")
        self.end_headers()
        self.wfile.write(data)

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()


@contextlib.contextmanager
def serving[S: ApiServer](server: S) -> Iterator[S]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class OpenAIServer(ApiServer):
    """OpenAI's chat completions and completions."""

    def __init__(self, answers: list[str]):
        super().__init__(answers, OpenAIHandler)


class OpenAIHandler(ApiHandler):
    def answer(self, body: dict[str, Any]) -> None:
        is_chat = self.path.endswith("/chat/completions")
        if (refusal := self.server.refusal()) is not None:
            self.send_json({"error": {"message": refusal.message, "type": refusal.kind}}, refusal.status)
        elif body.get("echo"):
            self._json([self._echo(index, text) for index, text in enumerate(body["prompt"])])
        elif body.get("stream"):
            self._stream(self._next(body), is_chat)
        else:
            choices = []
            for index in range(body.get("n", 1)):
                text = self._next(body)
                part = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
                logprobs = {"content": [{"token": text, "logprob": -0.5, "bytes": None, "top_logprobs": []}]}
                extra = {"logprobs": logprobs} if body.get("logprobs") and is_chat else {"logprobs": None}
                choices.append({"index": index, "finish_reason": "stop", **part, **extra})
            self._json(choices)

    def _next(self, body: dict[str, Any]) -> str:
        text, stops = self.server.next_text(), body.get("stop") or []
        ends = [text.find(stop) for stop in ([stops] if isinstance(stops, str) else stops) if stop in text]
        return text[: min(ends, default=len(text))]

    def _echo(self, index: int, text: str) -> dict[str, Any]:
        """A token per character; digits are likelier the larger they are."""
        logprobs = {
            "tokens": list(text),
            "text_offset": list(range(len(text))),
            "token_logprobs": [None, *(int(c) - 10.0 if c.isdigit() else -20.0 for c in text[1:])],
        }
        return {"index": index, "finish_reason": "length", "text": text, "logprobs": logprobs}

    def _json(self, choices: list[dict[str, Any]]) -> None:
        usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
        usage["prompt_tokens_details"] = {"cached_tokens": 4}  # type: ignore[assignment]
        self.send_json({"id": "1", "object": "x", "created": 1, "model": "m", "choices": choices, "usage": usage})

    def _stream(self, text: str, is_chat: bool) -> None:
        self.begin_stream()
        for letter in [*text, ""]:
            choice: dict[str, Any] = {"delta": {"content": letter}} if is_chat else {"text": letter}
            choice |= {"index": 0, "finish_reason": None if letter else "stop"}
            self._chunk(choices=[choice])
        usage = {"prompt_tokens": 7, "completion_tokens": len(text), "total_tokens": 9}
        self._chunk(choices=[], usage=usage)
        self.wfile.write(b"data: [DONE]\n\n")

    def _chunk(self, **fields: Any) -> None:
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", **fields}
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")


class AnthropicServer(ApiServer):
    """Anthropic's messages, with the refusals of the API itself that concern programs."""

    def __init__(self, answers: Sequence[str | Refusal]):
        super().__init__(answers, AnthropicHandler)


class AnthropicHandler(ApiHandler):
    def answer(self, body: dict[str, Any]) -> None:
        assert self.path == "/v1/messages"
        refusal = self._wrong(body) or self.server.refusal()
        if refusal is not None and refusal.after is None:
            self.send_json({"type": "error", "error": _error(refusal)}, refusal.status)
            return
        text = self.server.next_text() if refusal is None else refusal.after or ""
        reason, matched = "end_turn", None
        for stop in body.get("stop_sequences", []):
            if stop in text:
                text, reason, matched = text[: text.index(stop)], "stop_sequence", stop
        if len(text) > body["max_tokens"]:  # a token per character
            text, reason, matched = text[: body["max_tokens"]], "max_tokens", None
        end = {"stop_reason": reason, "stop_sequence": matched}
        if body.get("stream"):
            self._stream(text, end, refusal)
            return
        content = [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": text}]
        self.send_json({**_MESSAGE, "content": content, **end, "usage": {**_USAGE, "output_tokens": len(text)}})

    def _wrong(self, body: dict[str, Any]) -> Refusal | None:
        version = self.headers["anthropic-version"]
        for name in ("temperature", "top_p", "top_k"):
            if name in body and version != "2023-06-01":
                return Refusal(400, "invalid_request_error", f"{name}: Extra inputs are not permitted")
        if any(not stop.strip() for stop in body.get("stop_sequences", [])):
            return Refusal(400, "invalid_request_error", "each stop sequence must contain non-whitespace")
        if not isinstance(body.get("max_tokens"), int) or body["messages"][0]["role"] != "user":
            return Refusal(400, "invalid_request_error", "max_tokens or the first message is wrong")
        known = {"model", "messages", "max_tokens", "system", "stop_sequences", "stream", "output_config"}
        unknown = set(body) - known - {"temperature", "top_p", "top_k"}
        if unknown:
            return Refusal(400, "invalid_request_error", f"{unknown}: Extra inputs are not permitted")
        return None

    def _stream(self, text: str, end: dict[str, Any], refusal: Refusal | None) -> None:
        self.begin_stream()
        self._event("message_start", message={**_MESSAGE, "content": [], "usage": {**_USAGE, "output_tokens": 1}})
        self._event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        self._event("ping")
        for letter in text:
            self._event("content_block_delta", index=0, delta={"type": "text_delta", "text": letter})
        if refusal is not None:
            self._event("error", error=_error(refusal))
            return
        self._event("content_block_stop", index=0)
        self._event("message_delta", delta=end, usage={"output_tokens": len(text)})
        self._event("message_stop")

    def _event(self, kind: str, **fields: Any) -> None:
        self.wfile.write(f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode())


_MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": None, "stop_sequence": None
}  # fmt: skip
_USAGE = {"input_tokens": 5, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 2}


def _error(refusal: Refusal) -> dict[str, str]:
    return {"type": refusal.kind, "message": refusal.message}
