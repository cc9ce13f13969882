"""Runs what is appended to one state, in order and in the background.

An executor has a queue of tasks. Text is applied at once by whoever appends it; as soon as a task has to wait for a
model, a daemon thread works the queue off and ends when it is empty. So nothing has to be closed, an idle program has
no threads, and the branches of a fork, each with an executor of its own, run at the same time.

The first task that fails ends the executor: those behind it are dropped, and whoever reads a value that will never
come gets a `ProgramError` with the cause.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from sgjax.lang.task import Failure, Snapshot, Task
from sgjax.lang.transcript import Prompt, Transcript
from sgjax.lang.usage import UsageCounter


class ProgramError(RuntimeError):
    """A value that never came, because a step of its program failed: `__cause__` says why, and the message where."""


class ProgramCancelled(ProgramError):
    """A value that never came, because its program was cancelled."""


class Executor:
    """A queue of tasks, and the text and variables that they make.

    Args:
      transcript: owned from now on.
      threaded: False runs every task at once in the thread that submits it.
      usage: counts the tokens.
    """

    def __init__(self, transcript: Transcript, *, threaded: bool = True, usage: UsageCounter | None = None):
        self.usage = usage or UsageCounter()
        self.threaded = threaded
        self._transcript = transcript
        self._variables: dict[str, Any] = {}
        self._partial: dict[str, str] = {}  # what has been streamed so far
        self._meta_info: dict[str, Any] = {}
        self._pending: dict[str, int] = {}  # queued tasks by the names they set; a known name stays, with 0
        self._changed = threading.Condition(threading.RLock())
        self._num_calls = 0  # of the program's function, at work
        self._num_streams = 0
        self._listeners: list[Callable[[], None]] = []
        self._queue: deque[Task] = deque()
        self._is_busy = False
        self._body: int | None = None  # the thread of a body at work, which others that read must wait for
        self._error: BaseException | None = None
        self._failed_at = ""

    # --- submitting -------------------------------------------------------------------------------------------

    def submit(self, task: Task) -> None:
        """Queues a task. Instant ones, and all when not threaded, have run on return if nothing was queued before."""
        with self._changed:
            if self._error is not None:
                for name in task.sets:
                    self._pending.setdefault(name, 0)
                if task.abandon is not None:
                    task.abandon(self._error)
                return
            for name in task.sets:
                self._pending[name] = self._pending.get(name, 0) + 1
            self._queue.append(task)
            if self._is_busy:
                return
            self._is_busy = True
        if not self.threaded:
            self._work()
        elif task.is_instant:
            self._run_next()
            self._go_on()
        else:
            self._start_worker()

    def _go_on(self) -> None:
        """Leaves what others queued meanwhile to a thread."""
        with self._changed:
            if not self._queue:
                self._is_busy = False
                self._notify()
                return
        self._start_worker()

    def _start_worker(self) -> None:
        threading.Thread(target=self._work, name="sgjax-program", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._queue:
                    self._is_busy = False
                    self._notify()
                    return
            self._run_next()

    def _run_next(self) -> None:
        with self._changed:
            if not self._queue:  # dropped, by the failure of the program's body
                return
            task = self._queue.popleft()
        try:
            task.run()
        except BaseException as error:
            if task.abandon is not None:
                task.abandon(error)
            self.fail(error, task.what)
            if not isinstance(error, Exception):  # an interrupt, of a program that runs in its caller's thread
                self._is_busy = False
                raise
        finally:
            with self._changed:
                for name in task.sets:
                    self._pending[name] = max(0, self._pending[name] - 1)
                self._notify()

    def fail(self, error: BaseException, what: str) -> None:
        """Ends the executor: nothing that is queued runs."""
        with self._changed:
            if self._error is None:
                self._error, self._failed_at = error, what
            dropped = list(self._queue)
            self._queue.clear()
            self._pending = dict.fromkeys(self._pending, 0)
            self._notify()
        for task in dropped:
            if task.abandon is not None:
                task.abandon(error)

    def cancel(self) -> None:
        """`fail`, unless everything has run."""
        with self._changed:
            if self._is_busy or self._body is not None or self._num_calls:
                self.fail(ProgramCancelled("the program was cancelled"), "")

    @contextlib.contextmanager
    def calling(self) -> Iterator[None]:
        """While the program's function runs there is more to come."""
        with self._changed:
            self._num_calls += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_calls -= 1

    def hold(self, thread: int) -> None:
        """A body runs in this thread (0: will run) while others may read: what they ask for may be yet to come."""
        with self._changed:
            self._body = thread

    def release(self) -> None:
        """It has ended."""
        with self._changed:
            self._body = None
            self._notify()

    def _awaits_body(self) -> bool:
        return self._body is not None and self._body != threading.get_ident()

    def _notify(self) -> None:
        self._changed.notify_all()
        for listener in self._listeners:
            listener()

    # --- for tasks --------------------------------------------------------------------------------------------

    def edit(self, change: Callable[[Transcript], Any]) -> Any:
        """Changes or reads the transcript."""
        with self._changed:
            result = change(self._transcript)
            self._notify()
            return result

    def prompt_seen(self) -> Prompt:
        """The prompt, which from now on stands."""
        with self._changed:
            self._transcript.see()
            return self._transcript.prompt()

    def stream_in(self, name: str | None, text: str, meta_info: Any) -> None:
        """More text of a generation that is not done. Raises when the program has failed meanwhile, which ends it."""
        with self._changed:
            if self._error is not None:
                raise self._error
            self._transcript.append(text)
            if name is not None:
                self._partial[name] = self._partial.get(name, "") + text
                self._meta_info[name] = meta_info
            self._notify()

    def store(self, name: str | None, value: Any, meta_info: Any = None) -> None:
        """Gives a variable its value."""
        if name is None:
            return
        with self._changed:
            self._variables[name] = value
            self._partial.pop(name, None)
            self._pending.setdefault(name, 0)
            if meta_info is not None:
                self._meta_info[name] = meta_info
            self._notify()

    def stored(self, name: str) -> Any:
        """A variable's value, for tasks behind the one that set it."""
        return self._variables[name]

    def snapshot(self) -> Snapshot:
        with self._changed:
            return Snapshot(self._transcript.copy(), dict(self._variables), dict(self._meta_info))

    # --- forks ------------------------------------------------------------------------------------------------

    def snapshot_later(self, before: Callable[[], None] | None) -> Future[Snapshot]:
        """A snapshot of the state as it is when everything submitted so far has run.

        Args:
          before: runs just before it is taken.
        """
        future: Future[Snapshot] = Future()

        def run() -> None:
            if before is not None:
                before()
            future.set_result(self.snapshot())

        self.submit(Task(run, "fork", (), before is None, lambda error: _set_exception(future, error)))
        return future

    def start_from(self, future: Future[Snapshot], known: tuple[str, ...]) -> None:
        """Makes a new executor's state that snapshot, when it is there. `known`: names of its variables."""

        def run() -> None:
            snapshot = future.result()
            with self._changed:
                self._transcript = snapshot.transcript.copy()
                self._variables.update(snapshot.variables)
                self._meta_info.update(snapshot.meta_info)

        self.submit(Task(run, "the state it was forked from", known, is_instant=future.done()))

    # --- reading ----------------------------------------------------------------------------------------------

    def known_names(self) -> tuple[str, ...]:
        """Variables that have a value or will get one."""
        with self._changed:
            return tuple(self._pending)

    def value(self, name: str) -> Any:
        """Waits for a variable.

        Raises:
          KeyError: nothing sets it.
          ProgramError: what sets it failed.
        """
        with self._changed:
            self._wait_for(name)
            if name not in self._variables:
                raise self._program_error(f"the variable {name!r}")
            value = self._variables[name]
        if isinstance(value, Failure):
            raise ProgramError(f"the variable {name!r} has no value: {_short(value.error)}") from value.error
        return value

    def meta_info(self, name: str) -> Any:
        """Waits for a variable; SGLang's meta information about it, None when it was not generated."""
        self.value(name)
        with self._changed:
            return self._meta_info.get(name)

    def meta_info_now(self, name: str) -> Any:
        with self._changed:
            return self._meta_info.get(name)

    def _wait_for(self, name: str) -> None:
        self._changed.wait_for(lambda: name in self._pending or not self._awaits_body())
        if name not in self._pending:
            if self._error is not None:
                raise self._program_error(f"the variable {name!r}")
            known = ", ".join(sorted(self._pending)) or "none"
            raise KeyError(f"no variable {name!r}; known are: {known}")
        self._changed.wait_for(lambda: self._pending[name] == 0)

    def sync(self) -> None:
        """Waits until everything submitted has run or was dropped."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_busy and not self._awaits_body())

    @property
    def error(self) -> BaseException | None:
        return self._error

    def read(self, get: Callable[[Transcript], Any], what: str) -> Any:
        """Waits for everything, then reads the transcript. Raises ProgramError when a step failed."""
        self.sync()
        with self._changed:
            if self._error is not None:
                raise self._program_error(what)
            return get(self._transcript)

    def _program_error(self, what: str) -> ProgramError:
        assert self._error is not None
        if isinstance(self._error, ProgramCancelled):
            return ProgramCancelled(f"{what} cannot be read, because the program was cancelled")
        error = ProgramError(f"{what} cannot be read, because {self._failed_at} failed: {_short(self._error)}")
        error.__cause__ = self._error
        return error

    # --- streams ----------------------------------------------------------------------------------------------

    def grown(self, name: str | None, position: int) -> tuple[str, bool]:
        """What has come since a position of a variable's text, or of the whole; and whether that was all.

        Raises:
          KeyError, ProgramError: as `value` does.
        """
        with self._changed:
            if name is None:
                is_done = not self._is_busy and not self._awaits_body()
                if self._error is not None:
                    raise self._program_error("the text")
                text = self._transcript.text
            elif self._pending.get(name, 0) > 0:
                text, is_done = self._partial.get(name, ""), False
            elif name not in self._pending and self._awaits_body() and self._error is None:
                text, is_done = "", False
            else:
                text, is_done = str(self.value(name)), True
            return text[position:], is_done

    def pieces(self, name: str | None) -> Iterator[str]:
        """Text as it comes."""
        position = 0
        while True:
            with self._changed:
                text, is_done = self.grown(name, position)
                if not text and not is_done:
                    self._changed.wait()
                    continue
            position += len(text)
            if text:
                yield text
            if is_done:
                return

    @contextlib.contextmanager
    def streaming(self, abandon: Callable[[], None]) -> Iterator[None]:
        """Calls `abandon` when the last of the streams that are being read is left before its end."""
        with self._changed:
            self._num_streams += 1
        try:
            yield
        except (GeneratorExit, KeyboardInterrupt, asyncio.CancelledError):
            if self._num_streams == 1:
                abandon()
            raise
        finally:
            with self._changed:
                self._num_streams -= 1

    def listen(self, listener: Callable[[], None]) -> None:
        """Calls it whenever something changes, from any thread, until `unlisten`."""
        with self._changed:
            self._listeners.append(listener)

    def unlisten(self, listener: Callable[[], None]) -> None:
        with self._changed:
            self._listeners.remove(listener)


def _set_exception(future: Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
