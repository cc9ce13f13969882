"""JSON over HTTP with the standard library alone."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any


class EndpointError(RuntimeError):
    """A server that cannot be reached, or its refusal.

    Attributes:
      status: the HTTP status; None when there was no answer.
    """

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


class JsonClient:
    """Requests to one server, each over a connection of its own. Safe to share between threads.

    Args:
      verify: False accepts any certificate; a path is a file of certificate authorities.
      timeout_s: the longest silence, None without limit.
    """

    def __init__(
        self, base_url: str, *, api_key: str | None = None, verify: bool | str | None = None, timeout_s: float | None
    ):
        self.base_url = base_url.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout_s = timeout_s
        self._context: ssl.SSLContext | None = None
        if self.base_url.startswith("https:"):
            self._context = ssl.create_default_context(cafile=verify if isinstance(verify, str) else None)
            if verify is False:
                self._context.check_hostname = False
                self._context.verify_mode = ssl.CERT_NONE

    def get(self, path: str) -> Any:
        """Raises EndpointError, like the others."""
        with self._open(path, None, "GET") as response:
            return _decoded(response.read(), path)

    def post(self, path: str, body: Any = None) -> Any:
        """The answer's JSON, or its text when it is none."""
        with self._open(path, body, "POST") as response:
            return _decoded(response.read(), path)

    def stream(self, path: str, body: Any) -> Iterator[Any]:
        """The JSON of each server-sent event. Leaving early closes the connection, which ends the request."""
        with self._open(path, body, "POST") as response:
            for line in response:
                if not line.startswith(b"data:"):
                    continue
                data = line[len(b"data:") :].strip()
                if data == b"[DONE]":
                    return
                event = json.loads(data)
                if isinstance(event, dict) and "error" in event:
                    raise EndpointError(f"{self.base_url}{path} failed: {_message(event)}")
                yield event
        raise EndpointError(f"{self.base_url}{path} ended its stream early")

    def _open(self, path: str, body: Any, method: str) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base_url + path, data, self._headers, method=method)
        try:
            return urllib.request.urlopen(request, timeout=self._timeout_s, context=self._context)
        except urllib.error.HTTPError as error:
            with error:
                text = error.read().decode(errors="replace")
            raise EndpointError(
                f"{self.base_url}{path} answered {error.code}: {_message_of_text(text)}", error.code
            ) from None
        except (urllib.error.URLError, OSError) as error:
            raise EndpointError(f"{self.base_url}{path} cannot be reached: {error}") from error


def _decoded(data: bytes, path: str) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode(errors="replace")


def _message_of_text(text: str) -> str:
    try:
        return _message(json.loads(text))
    except ValueError:
        return text[:500]


def _message(answer: Any) -> str:
    """The message in an error's JSON, in OpenAI's form and others."""
    while isinstance(answer, dict):
        answer = answer.get("error") or answer.get("message") or answer.get("detail") or str(answer)
    return str(answer)
