"""`@function`: a program, to be run, run over a batch, traced and cached."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import os
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal

from sgjax.closing import closed_at_exit
from sgjax.lang import ir, remote
from sgjax.lang.backends.base import Backend
from sgjax.lang.default_backend import backend_or_default
from sgjax.lang.interpreter import Interpreter, RunOptions
from sgjax.lang.prefix import constant_prefix, is_cut_short, sort_key
from sgjax.lang.sampling import DEFAULT_SAMPLING
from sgjax.lang.state import ProgramState, State
from sgjax.lang.tracing import trace
from sgjax.lang.usage import Usage, usage_of
from sgjax.lang.workers import run_all

_logger = logging.getLogger(__name__)
_SAMPLING = frozenset(field.name for field in dataclasses.fields(ir.Sampling))


class SglFunction:
    """A function of a state, made by `function`.

    Arguments of `run` and `run_batch` that the function does not have itself are sampling defaults for its `gen`:
    max_new_tokens (128), min_new_tokens, n, stop, stop_token_ids, stop_regex, temperature (1.0), top_p, top_k, min_p,
    frequency_penalty, presence_penalty, repetition_penalty, ignore_eos, seed, return_logprob, logprob_start_len,
    top_logprobs_num, return_text_in_logprobs, and those that constrain the output.
    """

    def __init__(
        self,
        func: Callable[..., Any],
        num_api_spec_tokens: int | None = None,
        bind_arguments: Mapping[str, Any] | None = None,
    ):
        parameters = list(inspect.signature(func).parameters)
        if not parameters:
            raise TypeError(f"{func.__name__} needs a first parameter, the state")
        if inspect.iscoroutinefunction(func):
            raise TypeError(f"{func.__name__} must be a plain function: what it appends runs in the background anyway")
        self.func = func
        self.num_api_spec_tokens = num_api_spec_tokens
        self.bind_arguments = dict(bind_arguments or {})
        self.arg_names = parameters[1:]
        self._has_warned = False  # of a trace that ends early
        self.__name__ = func.__name__
        self.__doc__ = func.__doc__

    def bind(self, **arguments: Any) -> SglFunction:
        """The program with some arguments given; those of `run` go before them."""
        return SglFunction(self.func, self.num_api_spec_tokens, {**self.bind_arguments, **arguments})

    def run(
        self,
        *args: Any,
        stream: bool = False,
        backend: Any = None,
        use_thread: bool = True,
        on_server: bool = False,
        **kwargs: Any,
    ) -> ProgramState:
        """Runs the program once.

        Args:
          stream: return at once, so that `text_iter` shows the text as it grows.
          backend: an `Engine`, a `Runtime` or another backend; the default one when None.
          use_thread: False runs every step in this thread, one after another.
          on_server: record the function and let the server run it whole, in one request. Where that cannot be (it
            needs a value while it is recorded, the backend runs no programs) it is called step by step, a second time
            then; so it should do nothing but use its state. See docs/programs_on_the_server.md.
          **kwargs: the function's arguments, and sampling defaults.

        Returns:
          The state. Generations may still be under way; reading waits for them.

        Raises:
          ValueError: there is no backend.
          TypeError, ...: what the function raises (unless `stream`: then reading raises it).
        """
        state, arguments = self._prepare(kwargs, backend_or_default(backend), stream=stream, threaded=use_thread)
        if on_server and (run := remote.begin(self.func, args, arguments, state, stream)) is not None:
            run.start(stream=stream)
            return state
        if not (stream and use_thread):
            self._call(state, args, arguments)
            return state
        executor = state.interpreter.executor
        executor.hold(0)

        def body() -> None:
            executor.hold(threading.get_ident())
            try:
                self._call(state, args, arguments)
            except Exception:
                pass  # the executor has it, for whoever reads
            finally:
                executor.release()

        threading.Thread(target=body, name=f"sgjax-program-{self.__name__}", daemon=True).start()
        return state

    def run_batch(
        self,
        batch_kwargs: Sequence[Mapping[str, Any] | Sequence[Any]],
        *,
        backend: Any = None,
        num_threads: int | Literal["auto"] = "auto",
        progress_bar: bool = False,
        generator_style: bool = False,
        on_server: bool = False,
        **sampling: Any,
    ) -> Any:
        """Runs the program once for each item of a batch.

        What all runs begin with is put in the prefix cache first, by a request that the `usage()` of the run that
        starts first counts; runs with a longer common beginning start next to each other. Both are told by `trace`,
        so only up to where the function needs an argument's value, as an `if` or a loop over it does; that is logged
        once, as a warning. What a run raises is raised where its state is read; the others go on.

        Args:
          batch_kwargs: the arguments of each run, by name or in order.
          num_threads: how many run at a time; "auto" is 96, or 16 for each processor where that is more.
          progress_bar: shows one, by `tqdm`.
          generator_style: return an iterator, which yields each state as soon as it and those before it are done.
            Closing it early cancels the runs that are not; so does an interrupt in any style.
          on_server: as for `run`: one request for each run.

        Returns:
          The states, in the order of the batch; all runs have ended then.
        """
        found = backend_or_default(backend)
        batch = [self._by_name(item) for item in batch_kwargs]
        under_way = UnderWay()
        runs = [self._batch_run({**sampling, **item}, found, on_server, under_way) for item in batch]
        results = self._results(runs, batch, found, num_threads, progress_bar, under_way)
        return closed_at_exit(results) if generator_style else list(results)

    def trace(self, *, backend: Any = None, needs_all: bool = False, **arguments: Any) -> ir.Program:
        """Records what the program does, without a model: its arguments and variables are symbols.

        Args:
          backend: not needed.
          needs_all: raise what stops the record, instead of returning the part before it.
          **arguments: those that are known; the others are the record's `parameters`.

        Returns:
          The operations as plain data (`sgjax.lang.ir.Program`); `incomplete` says what stopped the record, or is None.

        Raises:
          TraceError, TypeError, AttributeError, ...: with `needs_all`, where the function needs a value now.
        """
        return trace(self.func, {**self.bind_arguments, **arguments}, needs_all=needs_all)

    def cache(self, backend: Any = None) -> str:
        """Puts what every run begins with in the prefix cache.

        Returns:
          That text: constants and turns up to the first argument or generation. Empty when there is none.

        Raises:
          ValueError: there is no backend.
        """
        text, _ = self._cache(self.trace(), backend_or_default(backend))
        return text

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`run`; inside a program, with its state as first argument, the function itself."""
        if args and isinstance(args[0], State):
            return self.func(*args, **{**self.bind_arguments, **kwargs})
        return self.run(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<program {self.__name__}({', '.join(self.arg_names)})>"

    # --- running ----------------------------------------------------------------------------------------------

    def _prepare(
        self, kwargs: Mapping[str, Any], backend: Backend, *, stream: bool, threaded: bool
    ) -> tuple[ProgramState, dict[str, Any]]:
        """A fresh state, and the function's own arguments."""
        own = {name: value for name, value in kwargs.items() if name not in _SAMPLING or name in self.arg_names}
        sampling = ir.Sampling(**{name: ir.lower(value) for name, value in kwargs.items() if name not in own})
        options = RunOptions(sampling.over(DEFAULT_SAMPLING), stream, threaded, self.num_api_spec_tokens)
        return ProgramState(Interpreter(backend, options)), {**self.bind_arguments, **own}

    def _call(self, state: ProgramState, args: Sequence[Any], arguments: Mapping[str, Any]) -> None:
        executor = state.interpreter.executor
        with executor.calling():
            try:
                state.ret_value = self.func(state, *args, **arguments)
            except BaseException as error:
                executor.fail(error, f"the program {self.__name__}")
                state.cancel()  # its forks
                raise

    def _batch_run(
        self, item: dict[str, Any], backend: Backend, on_server: bool, under_way: UnderWay
    ) -> Callable[[], ProgramState]:
        """One run of a batch, to be called when its turn has come."""

        def run() -> ProgramState:
            state, arguments = self._prepare(item, backend, stream=False, threaded=True)
            try:
                with state.interpreter.executor.calling():
                    under_way.add(state)
                    begun = remote.begin(self.func, (), arguments, state, False) if on_server else None
                    if begun is not None:
                        begun.start(stream=True)
                    else:
                        self._call(state, (), arguments)
                    state.sync()
            except Exception:
                pass  # the executor has it, for whoever reads
            return state

        return run

    def _results(
        self,
        runs: list[Callable[[], ProgramState]],
        batch: list[dict[str, Any]],
        backend: Backend,
        num_threads: Any,
        progress_bar: bool,
        under_way: UnderWay,
    ) -> Generator[ProgramState]:
        if not batch:
            return
        order, used = self._order(batch, backend)
        runs[order[0]] = _counting(runs[order[0]], used)
        if num_threads == "auto":
            num_threads = max(96, 16 * (os.cpu_count() or 1))

        states = run_all(runs, order, min(num_threads, len(batch)))
        if progress_bar:
            from tqdm import tqdm

            states = tqdm(states, total=len(batch), unit="program")
        try:
            yield from states
        except BaseException:  # nobody wants the others any more
            under_way.cancel()
            raise

    def _order(self, batch: list[dict[str, Any]], backend: Backend) -> tuple[list[int], Usage]:
        """The order in which to start, with the common prefix cached; and what that took."""
        numbers = list(range(len(batch)))
        if len(batch) == 1 or not backend.has_prefix_cache:
            return numbers, Usage()
        program = self.trace()
        if is_cut_short(program) and not self._has_warned:
            self._has_warned = True
            _logger.warning(
                "run_batch shares of %s only what comes before an argument's value is needed: %s",
                self.__name__,
                program.incomplete,
            )
        try:
            _, used = self._cache(program, backend)
        except Exception:
            return numbers, Usage()  # only a help; the runs will meet what is wrong, and tell
        keys = [sort_key(program, item) for item in batch]
        return sorted(numbers, key=keys.__getitem__), used

    def _cache(self, program: ir.Program, backend: Backend) -> tuple[str, Usage]:
        prompt = constant_prefix(program, backend.chat_format)
        if prompt is None or not backend.has_prefix_cache:
            return "", Usage()
        return prompt.text, usage_of([backend.prefill(prompt)])

    def _by_name(self, item: Any) -> dict[str, Any]:
        if isinstance(item, Mapping):
            return dict(item)
        if not isinstance(item, (list, tuple)):
            raise TypeError(f"an item of a batch holds arguments by name or in order, not {item!r}")
        if len(item) > len(self.arg_names):
            raise TypeError(f"{self.__name__} takes {len(self.arg_names)} arguments, not {len(item)}: {item!r}")
        return dict(zip(self.arg_names, item, strict=False))


class UnderWay:
    """The runs of a batch that have begun, to be cancelled together. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: list[ProgramState] = []
        self._is_cancelled = False

    def add(self, state: ProgramState) -> None:
        with self._lock:
            self._states.append(state)
            is_late = self._is_cancelled
        if is_late:
            state.cancel()

    def cancel(self) -> None:
        with self._lock:
            self._is_cancelled = True
        for state in self._states:
            state.cancel()


def _counting(run: Callable[[], ProgramState], used: Usage) -> Callable[[], ProgramState]:
    """The run, with what was used on its behalf."""

    def counted() -> ProgramState:
        state = run()
        state.interpreter.executor.usage.add(used)
        return state

    return counted
