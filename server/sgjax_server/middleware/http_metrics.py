"""Counts HTTP requests and open streams, for Prometheus."""

from __future__ import annotations

import collections
import os
from collections.abc import Iterator

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

UNROUTED = "none"
"""The route of what no route took: a path that does not exist, or a request without a valid key."""


class HttpMetrics(Collector):
    """What this process counts. For its event loop's thread.

    Attributes:
      requests: finished ones by method, route and status; the status is "none" where the client left before it.
      num_open: requests being answered. num_streams: those of them whose answer comes in pieces.
      num_engine_restarts: engines that another took the place of, as the supervisor says.
    """

    def __init__(self) -> None:
        self.requests: collections.Counter[tuple[str, str, str]] = collections.Counter()
        self.num_open = 0
        self.num_streams = 0
        self.num_engine_restarts = 0
        self._pid = str(os.getpid())

    def render(self, *, engine_up: bool) -> str:
        """The page's part about this process, in Prometheus' text format."""
        up = GaugeMetricFamily("sgjax:engine_up", "Whether the engine takes requests.", float(engine_up))
        ended = "Engine processes that died or hung, and whose place another took."
        restarts = CounterMetricFamily("sgjax:engine_restarts_total", ended, self.num_engine_restarts)
        return generate_latest(_Families([up, restarts, *self.collect()])).decode()

    def collect(self) -> Iterator[Metric]:
        # Each HTTP process counts its own, and chance decides which answers a scrape: the pid tells them apart.
        requests = CounterMetricFamily(
            "sgjax:http_requests_total",
            "Finished HTTP requests, each in the process that answered it.",
            labels=("pid", "method", "route", "status"),
        )
        for labels, count in self.requests.items():
            requests.add_metric((self._pid, *labels), count)
        yield requests
        for name, help_text, value in (
            ("http_open_requests", "HTTP requests being answered.", self.num_open),
            ("http_open_streams", "Those of them whose answer comes in pieces.", self.num_streams),
        ):
            gauge = GaugeMetricFamily("sgjax:" + name, help_text, labels=("pid",))
            gauge.add_metric((self._pid,), value)
            yield gauge


class _Families(Collector):
    def __init__(self, families: list[Metric]):
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


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
                metrics.num_streams += 1
            await send(message)

        metrics.num_open += 1
        try:
            await self._app(scope, receive, counted)
        except Exception:  # answered further out
            status = "500" if status == "none" else status
            raise
        finally:
            metrics.num_open -= 1
            metrics.num_streams -= is_stream
            metrics.requests[scope["method"], route_of(scope), status] += 1


def route_of(scope: Scope) -> str:
    """The path of the route that took a request, with its parameters' names instead of their values."""
    return getattr(scope.get("route"), "path", UNROUTED)
