"""A second thread for what can be learned or judged beside the first: most of a phase is small steps of one core.

Results do not depend on it: nothing that the work reads is altered meanwhile, and torch uses as many threads in it as
in the thread that asks for it.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

import torch

from models.beside import Beside, at_once

T = TypeVar("T")


def side_thread() -> Beside:
    """What does one piece of work after another in a thread of its own, which ends with it; on a machine of one core,
    where that could do nothing beside the first, at once."""
    if (os.cpu_count() or 1) == 1:
        return at_once
    queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
    # not an executor of the standard library: the interpreter's end would wait for what it is doing
    threading.Thread(target=_work_off, args=(queue,), name="beside", daemon=True).start()

    def beside(work: Callable[[], T]) -> Callable[[], T]:
        threads, future = torch.get_num_threads(), Future[T]()

        def carry_out() -> None:
            try:
                if torch.get_num_threads() != threads:
                    torch.set_num_threads(threads)
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                future.set_exception(error)

        queue.put(carry_out)
        return future.result

    weakref.finalize(beside, queue.put, None)
    return beside


def _work_off(queue: SimpleQueue[Callable[[], None] | None]) -> None:
    while (one := queue.get()) is not None:
        one()
        del one  # and what it holds, while nothing is asked for
