"""Progress on a terminal: one line that is rewritten, or a few plain lines where the output is no terminal."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from typing import TextIO

_BAR_WIDTH = 24
_SECONDS_BETWEEN = 0.1


class ProgressLine:
    """Shows a label and a share of it that is done. May be called from any thread.

    On a terminal the line is rewritten in place; elsewhere each new label gives one line.
    """

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._lock = threading.Lock()
        self._label = ""
        self._shown_s = 0.0
        self._closed = False

    def __call__(self, label: str, fraction: float) -> None:
        with self._lock:
            now = time.monotonic()
            is_new = label != self._label
            if self._closed or not (is_new or (self._is_terminal and now - self._shown_s > _SECONDS_BETWEEN)):
                return
            self._label, self._shown_s = label, now
            if self._is_terminal:
                filled = round(_BAR_WIDTH * min(max(fraction, 0.0), 1.0))
                bar = "#" * filled + "." * (_BAR_WIDTH - filled)
                width = shutil.get_terminal_size().columns - _BAR_WIDTH - len(" [] 100 %") - 1
                self._stream.write(f"\r\x1b[K{label[:width]} [{bar}] {100 * fraction:3.0f} %")
            else:
                self._stream.write(f"{label}\n")
            self._stream.flush()

    def close(self) -> None:
        """Removes the line; later calls show nothing."""
        with self._lock:
            if self._is_terminal and self._label and not self._closed:
                self._stream.write("\r\x1b[K")
                self._stream.flush()
            self._closed = True


def human_bytes(num_bytes: int) -> str:
    """3.2 GiB or 94 MiB."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"
