"""One OpenTelemetry span per HTTP request, with spans of what the engine did for it. Needs the extra `otel`."""

from __future__ import annotations

from collections.abc import Iterator

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sgjax_server.middleware.access import OPEN_PATHS
from sgjax_server.middleware.http_metrics import UNROUTED, route_of
from sgjax_server.middleware.request_log import EndedSample, RequestRecord

_UNTRACED = OPEN_PATHS | {"/metrics"}  # what probes and scrapes ask every few seconds


class TraceRequests:
    """ASGI middleware: spans, below the caller's where the request brings a W3C `traceparent`.

    No span holds what a client wrote or was answered.
    """

    def __init__(self, app: ASGIApp, provider: TracerProvider):
        self._app = app
        self._tracer = provider.get_tracer("sgjax_server")
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _UNTRACED:
            return await self._app(scope, receive, send)
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        span = self._tracer.start_span(
            scope["method"],
            self._propagator.extract(carrier),
            SpanKind.SERVER,
            {"http.request.method": scope["method"], "url.path": scope["path"]},
        )
        try:
            await self._app(scope, receive, watched)
        except Exception as error:  # answered further out
            status = status or 500
            span.record_exception(error)
            raise
        finally:
            self._end(span, scope, status)

    def _end(self, span: Span, scope: Scope, status: int) -> None:
        if (route := route_of(scope)) != UNROUTED:
            span.update_name(f"{scope['method']} {route}")
            span.set_attribute("http.route", route)
        if status:
            span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(StatusCode.ERROR)
        record: RequestRecord | None = scope.get("state", {}).get("record")
        if record is not None and record.rids:
            self._add_record(span, record)
        span.end()

    def _add_record(self, span: Span, record: RequestRecord) -> None:
        span.set_attributes(
            {
                "gen_ai.response.id": record.rids[0],
                "gen_ai.response.finish_reasons": record.finish,
                "gen_ai.usage.input_tokens": record.prompt_tokens,
                "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
                "gen_ai.usage.output_tokens": record.completion_tokens,
                "sgjax.unfinished_samples": record.num_open,
            }
        )
        for sample in record.ended:
            for name, start_ns, end_ns, facts in _phases(sample):
                attributes = {"sgjax.request_id": sample.rid, "sgjax.sample": sample.index, **facts}
                child = self._tracer.start_span(
                    name, set_span_in_context(span), attributes=attributes, start_time=start_ns
                )
                child.end(end_ns)


def _phases(sample: EndedSample) -> Iterator[tuple[str, int, int, dict[str, int]]]:
    """Name, start, end and attributes of what the engine did, counted back from when its end was heard of here."""
    receipt = sample.receipt
    if receipt is None:
        return
    arrival_ns = sample.ended_ns - int(receipt.e2e_s * 1e9)
    admitted_ns = arrival_ns + int(receipt.queue_s * 1e9)
    first_ns = arrival_ns + int(receipt.ttft_s * 1e9)
    if receipt.prompt_parts is None:  # it never left the queue
        yield "queue", arrival_ns, sample.ended_ns, {}
        return
    yield "queue", arrival_ns, admitted_ns, {}
    prompt = {
        "sgjax.prompt_tokens": receipt.prompt_tokens,
        "sgjax.cached_tokens": receipt.cached_tokens,
    }
    if not receipt.ttft_s:  # it ended, or was aborted, without a token
        yield "prefill", admitted_ns, sample.ended_ns, prompt
        return
    yield "prefill", admitted_ns, first_ns, prompt
    yield (
        "decode",
        first_ns,
        sample.ended_ns,
        {
            "sgjax.completion_tokens": receipt.completion_tokens,
            "sgjax.forced_tokens": receipt.forced_tokens,
            "sgjax.preemptions": receipt.preemptions,
        },
    )
