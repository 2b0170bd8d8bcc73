"""A second thread for what can be learned or judged beside the first: most of a phase is small steps of one core.

Results do not depend on it: the work is given nothing that changes meanwhile, and torch uses as many threads in it as
in the thread that asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from models.beside import Beside, at_once

T = TypeVar("T")


def side_thread() -> Beside:
    """What does one piece of work after another in a thread of its own; on a machine of one core, where that could do
    nothing beside the first, at once."""
    if (os.cpu_count() or 1) == 1:
        return at_once
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="beside")

    def beside(work: Callable[[], T]) -> Callable[[], T]:
        threads = torch.get_num_threads()

        def alike() -> T:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            return work()

        return pool.submit(alike).result

    return beside
