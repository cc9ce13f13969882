"""Spans, in memory and at a collector of the test's own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from sgjax_server import tracing
from sgjax_server.app import create_app
from sgjax_server.config import ServerConfig
from sgjax_server.host import EngineHost

from sgjax.config import ConfigError
from sgjax.types import FinishReason, Receipt

from .fakes import FakeEngine

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ENDPOINT = "http://127.0.0.1:4318"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Where the spans of applications made in this test go."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("sgjax_server.app.start_tracing", lambda endpoint: provider)
    return exporter


@pytest.fixture
async def traced(engine: FakeEngine, exporter: InMemorySpanExporter):
    app = create_app(EngineHost(engine), ServerConfig(otlp_endpoint=ENDPOINT))  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def spans_of(exporter: InMemorySpanExporter) -> tuple[ReadableSpan, list[ReadableSpan]]:
    """The request's span, and those below it."""
    spans = exporter.get_finished_spans()
    (root,) = [span for span in spans if span.kind is SpanKind.SERVER]
    assert root.context is not None
    children = [span for span in spans if span is not root]
    assert all(span.parent is not None and span.parent.span_id == root.context.span_id for span in children)
    return root, children


@pytest.mark.parametrize("stream", [False, True])
async def test_phases_of_a_request(traced, exporter: InMemorySpanExporter, stream: bool):
    body = {"prompt": "secret", "max_tokens": 5, "stream": stream}
    headers = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01"}
    assert (await traced.post("/v1/completions", json=body, headers=headers)).status_code == 200
    root, children = spans_of(exporter)
    assert root.name == "POST /v1/completions"
    assert root.parent is not None
    assert f"{root.parent.trace_id:032x}-{root.parent.span_id:016x}" == f"{TRACE_ID}-{SPAN_ID}"
    assert root.attributes is not None
    assert root.attributes["http.response.status_code"] == 200
    assert root.attributes["gen_ai.usage.input_tokens"] == 6
    assert root.attributes["gen_ai.usage.output_tokens"] == 5
    assert root.attributes["gen_ai.response.finish_reasons"] == ("length",)
    queue, prefill, decode = children
    assert [span.name for span in children] == ["queue", "prefill", "decode"]
    assert [round((span.end_time - span.start_time) / 1e9, 3) for span in children] == [0.1, 0.1, 0.3]
    assert (queue.end_time, prefill.end_time) == (prefill.start_time, decode.start_time)
    assert prefill.attributes["sgjax.cached_tokens"] == 2
    assert "secret" not in "".join(span.to_json() for span in exporter.get_finished_spans())


async def test_a_request_that_never_ran(traced, engine: FakeEngine, exporter: InMemorySpanExporter):
    engine.end = FinishReason("abort", message="aborted")
    engine.receipt = Receipt(e2e_s=2.0, prompt_tokens=1)
    await traced.post("/generate", json={"text": "a", "sampling_params": {"n": 2}})
    _, children = spans_of(exporter)
    assert [(span.name, span.attributes["sgjax.sample"]) for span in children] == [("queue", 0), ("queue", 1)]
    assert {round((span.end_time - span.start_time) / 1e9, 3) for span in children} == {2.0}


async def test_failures(traced, engine: FakeEngine, exporter: InMemorySpanExporter):
    engine.error = ZeroDivisionError()
    await traced.post("/generate", json={"text": "a"})
    root, children = spans_of(exporter)
    assert (root.attributes["http.response.status_code"], root.status.status_code) == (500, StatusCode.ERROR)
    assert root.attributes["sgjax.unfinished_samples"] == 1
    assert children == []
    exporter.clear()
    await traced.get("/nowhere")
    root, _ = spans_of(exporter)
    assert (root.name, root.attributes["http.response.status_code"]) == ("GET", 404)
    assert root.status.status_code is StatusCode.UNSET


async def test_probes_leave_no_spans(traced, exporter: InMemorySpanExporter):
    for path in ("/health", "/metrics"):
        assert (await traced.get(path)).status_code == 200
    assert exporter.get_finished_spans() == ()


@pytest.fixture
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """URL of an OTLP collector, and what has been sent to it."""
    received: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces"
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    thread.join()
    server.server_close()


async def test_spans_reach_a_collector(collector: tuple[str, list[ExportTraceServiceRequest]]):
    url, received = collector
    app = create_app(EngineHost(FakeEngine()), ServerConfig(otlp_endpoint=url))  # type: ignore[arg-type]
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        await client.post("/v1/completions", json={"prompt": "a"})
    (message,) = received  # the end of the application sends what is left
    (resource,) = message.resource_spans
    assert {item.key: item.value.string_value for item in resource.resource.attributes}["service.name"] == "sgjax"
    names = [span.name for scope in resource.scope_spans for span in scope.spans]
    assert sorted(names) == ["POST /v1/completions", "decode", "prefill", "queue"]


@pytest.mark.parametrize("endpoint", ["localhost:4318", "ftp://localhost", "http://", ""])
def test_what_is_no_endpoint(endpoint: str):
    with pytest.raises(ConfigError, match=r"otlp_endpoint: must be the http:// or https:// URL"):
        ServerConfig(otlp_endpoint=endpoint)


@pytest.mark.parametrize("missing", ["opentelemetry", "opentelemetry.exporter.otlp.proto.http"])
def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, missing: str):
    def find(name: str) -> object:
        if name == missing:
            raise ModuleNotFoundError(name)
        return object()

    monkeypatch.setattr(tracing.importlib.util, "find_spec", find)
    with pytest.raises(ConfigError, match=r"otlp_endpoint: needs OpenTelemetry: pip install 'sgjax\[otel\]'"):
        ServerConfig(otlp_endpoint=ENDPOINT)
