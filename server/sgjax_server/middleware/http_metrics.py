"""Counts HTTP requests and open streams, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

UNROUTED = "none"
"""The route of what no route took: a path that does not exist, or a request without a valid key."""


class HttpMetrics:
    """What the HTTP processes of a server count.

    Args:
      folder: where all of them keep their counts, so that each can tell the sums: PROMETHEUS_MULTIPROC_DIR of their
        environments, which prometheus_client reads when it is imported. None: this process is the only one.

    Attributes:
      requests: finished ones by method, route and status; the status is "none" where the client left before it.
      open_requests: those being answered. open_streams: those of them whose answer comes in pieces.
      num_engine_restarts: engines that another took the place of, as the supervisor says.
    """

    def __init__(self, folder: str | None = None):
        self.num_engine_restarts = 0
        own = CollectorRegistry()
        self.requests = Counter(
            "sgjax:http_requests", "Finished HTTP requests.", ("method", "route", "status"), registry=own
        )
        self.open_requests = Gauge(
            "sgjax:http_open_requests", "HTTP requests being answered.", multiprocess_mode="livesum", registry=own
        )
        self.open_streams = Gauge(
            "sgjax:http_open_streams",
            "Those of them whose answer comes in pieces.",
            multiprocess_mode="livesum",
            registry=own,
        )
        self._counts: Collector = own if folder is None else MultiProcessCollector(None, folder)

    def render(self, *, engine_up: bool) -> str:
        """The page's part about HTTP, in Prometheus' text format."""
        up = GaugeMetricFamily("sgjax:engine_up", "Whether the engine takes requests.", float(engine_up))
        ended = "Engine processes that died or hung, and whose place another took."
        restarts = CounterMetricFamily("sgjax:engine_restarts_total", ended, self.num_engine_restarts)
        return generate_latest(_Page([up, restarts], self._counts)).decode()


class _Page(Collector):
    def __init__(self, known: Sequence[Metric], counts: Collector):
        self._known = known
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        yield from self._known
        for family in self._counts.collect():
            # When counting began is not in the files either.
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


class CountRequests:
    """ASGI middleware that fills `HttpMetrics`."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics):
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        metrics = self._metrics
        status, is_stream = "none", False

        async def counted(message: Message) -> None:
            nonlocal status, is_stream
            if message["type"] == "http.response.start":
                status = str(message["status"])
            elif not is_stream and message.get("more_body"):
                is_stream = True
                metrics.open_streams.inc()
            await send(message)

        metrics.open_requests.inc()
        try:
            await self._app(scope, receive, counted)
        except Exception:  # answered further out
            status = "500" if status == "none" else status
            raise
        finally:
            metrics.open_requests.dec()
            metrics.open_streams.dec(is_stream)
            metrics.requests.labels(scope["method"], route_of(scope), status).inc()


def route_of(scope: Scope) -> str:
    """The path of the route that took a request, with its parameters' names instead of their values."""
    return getattr(scope.get("route"), "path", UNROUTED)
