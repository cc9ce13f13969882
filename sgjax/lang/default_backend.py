"""The backend of programs that are run without one: the language's only global state, as SGLang's interface has it."""

from __future__ import annotations

import threading
from typing import Any

from sgjax.lang.backends.base import Backend, as_backend

_lock = threading.Lock()
_default: Backend | None = None


def set_default_backend(backend: Any) -> None:
    """Sets what programs run on that are given no `backend`: an `Engine`, a `Runtime` or a backend; None takes it away.

    Raises:
      TypeError: it is none of them.
    """
    global _default
    found = None if backend is None else as_backend(backend)
    with _lock:
        _default = found


def backend_or_default(backend: Any) -> Backend:
    """What a `backend=` argument means.

    Raises:
      ValueError: it is None and there is no default.
    """
    if backend is not None:
        return as_backend(backend)
    with _lock:
        if _default is None:
            raise ValueError("there is no backend: give backend=, or call set_default_backend() first")
        return _default


def flush_cache(backend: Any = None) -> None:
    """Empties the prefix cache of the backend, or of the default one. Raises ValueError when there is none."""
    backend_or_default(backend).flush_cache()


def get_server_info(backend: Any = None) -> dict[str, Any]:
    """Settings and state of what runs the model: of the backend, or of the default one.

    Raises:
      ValueError: there is none.
    """
    return backend_or_default(backend).get_server_info()
