"""What happens in the engine, for people who watch: made once for all of them, and only while somebody does."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from sgjax_server import sse
from sgjax_server.host import EngineHost

if TYPE_CHECKING:
    from sgjax.cache.snapshot import EvictedPart, TreeNode
    from sgjax.engine import LiveSnapshot
    from sgjax.text import Tokenizer

INTERVAL_S = 0.5
MAX_NODES = 300
# Long enough to know a prompt by, short enough that most of it stays unseen.
_MAX_TEXT = 80


class LiveFeed:
    """Snapshots of the engine, as server-sent events."""

    def __init__(self, host: EngineHost, interval_s: float = INTERVAL_S):
        self._host = host
        self._interval_s = interval_s
        self._num_watchers = 0
        self._producer: asyncio.Task[None] | None = None
        self._next: asyncio.Future[_Frame | None] | None = None
        self._is_closed = False

    def watch(self, *, with_texts: bool) -> sse.EventStream:
        """A stream of snapshots, of which a slow client misses some. It ends with an error when the engine fails.

        Args:
          with_texts: tell how the cached prompts and answers begin, not only how long they are.
        """
        self._num_watchers += 1
        return sse.EventStream(functools.partial(sse.write_each, self._events(with_texts)), self._leave)

    def close(self) -> None:
        """Ends all streams, also those that come later: a server that stops does not wait for who only watches."""
        self._is_closed = True
        if self._producer is not None and self._next is not None:
            self._producer.cancel()
            self._next.set_result(None)

    def _leave(self) -> None:
        self._num_watchers -= 1
        if self._num_watchers == 0 and self._producer is not None:
            self._producer.cancel()
            self._producer = None

    async def _events(self, with_texts: bool) -> AsyncIterator[bytes]:
        while not self._is_closed:
            frame = await asyncio.shield(self._next_frame())  # one who goes must not cancel it for the others
            if frame is not None:
                yield frame.encoded(with_texts)

    def _next_frame(self) -> asyncio.Future[_Frame | None]:
        if self._producer is None or self._next is None:
            self._next = asyncio.get_running_loop().create_future()
            self._producer = asyncio.create_task(self._produce(self._next))
        return self._next

    async def _produce(self, next_frame: asyncio.Future[_Frame | None]) -> None:
        try:
            while True:
                engine = self._host.engine
                frame = _Frame(await engine.live(MAX_NODES), engine.tokenizer, engine.info.config.page_size)
                self._next = asyncio.get_running_loop().create_future()
                next_frame.set_result(frame)
                next_frame = self._next
                await asyncio.sleep(self._interval_s)
        except Exception as error:
            self._producer = None
            next_frame.set_exception(error)
            next_frame.exception()  # asyncio would complain if nobody were waiting just now


class _Frame:
    """One snapshot, encoded when somebody asks, once with texts and once without."""

    def __init__(self, snapshot: LiveSnapshot, tokenizer: Tokenizer, page_size: int):
        self._snapshot = snapshot
        self._tokenizer = tokenizer
        self._page_size = page_size
        self._at_s = time.monotonic()

    def encoded(self, with_texts: bool) -> bytes:
        return self._with_texts if with_texts else self._without_texts

    @functools.cached_property
    def _with_texts(self) -> bytes:
        return self._encode(with_texts=True)

    @functools.cached_property
    def _without_texts(self) -> bytes:
        return self._encode(with_texts=False)

    def _encode(self, *, with_texts: bool) -> bytes:
        tree = self._snapshot.tree

        def row(part: TreeNode | EvictedPart) -> dict[str, Any]:
            # Token ids are as good as the text, so they go nowhere.
            fields = {name: getattr(part, name) for name in part.__slots__ if name != "first_tokens"}
            return {**fields, "text": self._text(part.first_tokens)} if with_texts else fields

        return sse.event(
            {
                "at_s": self._at_s,
                "with_texts": with_texts,
                "page_size": self._page_size,
                "stats": self._snapshot.stats,
                "sequences": self._snapshot.sequences,
                "tree": {
                    "num_nodes": tree.num_nodes,
                    "num_tokens": tree.num_tokens,
                    "num_roots": tree.num_roots,
                    "nodes": [row(node) for node in tree.nodes],
                    "evicted": [row(part) for part in tree.evicted],
                },
            }
        )

    def _text(self, token_ids: tuple[int, ...]) -> str:
        # An edge may begin inside a character.
        return self._tokenizer.decode(token_ids).strip("\ufffd")[:_MAX_TEXT]
