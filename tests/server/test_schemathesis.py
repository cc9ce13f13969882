"""Every operation of the OpenAPI document, asked what the document allows and what it does not.

The live view's stream is not in the document: it has no end. It has tests of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sgjax_server.app import create_app
from sgjax_server.config import ServerConfig
from sgjax_server.host import EngineHost

from .fakes import FakeEngine

SLOW_OR_RARE = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
CONFIG = {
    "generation": {"mode": "all", "deterministic": True, "database": "none"},
    # What is refused is drawn at random alone: to go through all of that for each field takes minutes.
    "phases": {"coverage": {"generation": {"mode": "positive"}, "unexpected-methods": ["PUT"]}},
    # 501 is what routes say that are not served.
    "checks": {"not_a_server_error": {"expected-statuses": ["2xx", "4xx", "501", "503"]}},
}


operations = schemathesis.openapi.from_asgi(
    "/openapi.json",
    create_app(EngineHost(FakeEngine()), ServerConfig()),  # type: ignore[arg-type]
    config=schemathesis.Config.from_dict(CONFIG),
)


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where folders may be made, and no log level is set for the tests that follow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("profiles"))
        patch.setattr("sgjax_server.routes.logs.set_log_level", lambda level: None)
        yield


@operations.parametrize()
@settings(max_examples=8, deadline=None, suppress_health_check=SLOW_OR_RARE)
def test_operation(case: schemathesis.Case):
    """No 5xx, and no answer that the document does not describe, errors included."""
    if case.path == "/start_profile" and isinstance(case.body, dict):
        output_dir = case.body.get("output_dir")
        if isinstance(output_dir, str):
            case.body["output_dir"] = f"./{output_dir}"
    case.call_and_validate(checks=CHECKS)
