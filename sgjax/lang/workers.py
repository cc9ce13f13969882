"""A bounded pool of daemon threads for one batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future


def run_all[T](tasks: Sequence[Callable[[], T]], order: Sequence[int], num_threads: int) -> Iterator[T]:
    """Runs tasks in `order`, at most `num_threads` at a time; yields their results in the order of `tasks`.

    Leaving early starts no further task. The threads end with their last task and do not keep the process alive, so
    that an interrupt is one.
    """
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, not {num_threads}")
    futures: list[Future[T]] = [Future() for _ in tasks]
    numbers = iter(order)
    lock = threading.Lock()
    left = threading.Event()

    def work() -> None:
        while not left.is_set():
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                futures[number].set_result(tasks[number]())
            except BaseException as error:
                futures[number].set_exception(error)

    threads = [threading.Thread(target=work, name=f"sgjax-batch-{i}", daemon=True) for i in range(num_threads)]
    for thread in threads:
        thread.start()
    try:
        for future in futures:
            yield future.result()
        for thread in threads:
            thread.join()
    finally:
        left.set()
