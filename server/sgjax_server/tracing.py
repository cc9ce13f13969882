"""OpenTelemetry: where spans go. The library is an extra, imported only when there is an endpoint."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import sgjax

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_EXPORT_TIMEOUT_S = 5


def endpoint_problem(endpoint: str) -> str | None:
    """Why traces cannot be sent to an endpoint; None when they can, as far as one knows before trying."""
    if urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).hostname:
        return f"must be the http:// or https:// URL of a collector, not {endpoint!r}"
    packages = ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
    try:
        is_installed = all(importlib.util.find_spec(package) is not None for package in packages)
    except ModuleNotFoundError:
        is_installed = False
    return None if is_installed else "needs OpenTelemetry: pip install 'sgjax[otel]'"


def start_tracing(endpoint: str) -> TracerProvider:
    """A provider of tracers whose spans go to an OTLP collector, in a thread. Whoever gets it must `shutdown` it.

    Args:
      endpoint: `http://host:4318`, or with a path of its own.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if urlsplit(endpoint).path in ("", "/"):
        endpoint = endpoint.rstrip("/") + "/v1/traces"
    provider = TracerProvider(
        resource=Resource.create({SERVICE_NAME: "sgjax", SERVICE_VERSION: sgjax.__version__}), shutdown_on_exit=False
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint, timeout=_EXPORT_TIMEOUT_S)))
    return provider
