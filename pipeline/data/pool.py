"""Blocks processed by as many processes as there are cores, in order.

Guarantees: what comes out is in the order of what went in; no more than a few blocks are in memory; the processes end
with the one that started them, even when that one is killed. Small sources are processed where they are: a process
takes half a second to start.
"""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Protocol, TypeVar

from tunewright.pipeline.data.layouts import Layout
from tunewright.pipeline.data.processing import Processed, Processor, Recipe
from tunewright.pipeline.data.reading import Block
from tunewright.pipeline.errors import Unavailable, call

Item = TypeVar("Item")
# Layout, the file's name, the block, and whatever the caller wants to have beside the result.
Task = tuple[Layout, str, Block, Item]

MAX_PROCESSES = 8
# Below this, one process is done before others have started.
SMALL_BYTES = 16_000_000
BLOCKS_AHEAD = 2


class Process(Protocol):
    """Runs tasks; see `processes`."""

    def __call__(self, tasks: Iterable[Task[Item]]) -> Iterator[tuple[Item, Processed]]: ...


@contextmanager
def processes(recipe: Recipe, size_bytes: int) -> Generator[Process]:
    """A function that turns tasks into their results, in order, for sources of about `size_bytes`."""
    count = min(MAX_PROCESSES, os.cpu_count() or 1)
    if size_bytes < SMALL_BYTES or count < 2:
        processor = Processor(recipe)

        def in_place(tasks: Iterable[Task[Item]]) -> Iterator[tuple[Item, Processed]]:
            return ((item, processor.process(layout, file, block)) for layout, file, block, item in tasks)

        yield in_place
        return
    # Forking a process that has threads is unsafe; a spawned one begins clean.
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin, (recipe,))

    def in_parallel(tasks: Iterable[Task[Item]]) -> Iterator[tuple[Item, Processed]]:
        return _in_order(pool, tasks, count + BLOCKS_AHEAD)

    try:
        yield in_parallel
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, tasks: Iterable[Task[Item]], ahead: int) -> Iterator[tuple[Item, Processed]]:
    coming = iter(tasks)
    waiting: deque[tuple[Item, Future[Processed]]] = deque()
    try:
        while True:
            for layout, file, block, item in islice(coming, ahead - len(waiting)):
                waiting.append((item, _submitted(pool, layout, file, block)))
            if not waiting:
                return
            item, future = waiting.popleft()
            yield item, _result(future)
    except BrokenProcessPool as error:
        raise Unavailable(
            "process_died",
            "A process that cleaned rows ended without a word: killed, or out of memory.",
            allowed="Close other programs, or prepare fewer rows with max_rows.",
            next=call("prepare_dataset", source="…", max_rows=100_000),
            done="No dataset was made.",
        ) from error


def _submitted(pool: ProcessPoolExecutor, layout: Layout, file: str, block: Block) -> Future[Processed]:
    try:
        return pool.submit(_process, layout, file, block)
    except OSError as error:  # a pool that broke a moment ago has closed its pipes, and does not say so yet
        raise BrokenProcessPool(str(error)) from error


def _result(future: Future[Processed]) -> Processed:
    try:
        return future.result()
    except BrokenPipeError as error:  # the block was being sent to a process that died
        raise BrokenProcessPool(str(error)) from error


_processor: Processor | None = None


def _begin(recipe: Recipe) -> None:
    global _processor
    _processor = Processor(recipe)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _process(layout: Layout, file: str, block: Block) -> Processed:
    if _processor is None:
        raise RuntimeError("the process was not begun")
    return _processor.process(layout, file, block)
