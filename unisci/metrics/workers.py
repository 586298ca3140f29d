"""Worker processes that answer one task at a time, each task under a time limit.

A signal cannot end a loop inside compiled code, and one dead process breaks the pools of the standard library. Here a
worker that is late is killed, one that dies is replaced, and both are answers with a reason: nothing ends the map.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

TIME_OUT = "time out"
DIED = "worker died"
START_LIMIT = 300.0  # seconds to start a process and import what it needs, on a cold and busy disk
GRACE = 5.0  # seconds after its limit at which a worker ends itself, for a parent that was killed cannot


class Answer(NamedTuple):
    """What a task gave: (value, None), or (None, why there is none)."""

    value: Any
    reason: str | None


def nothing() -> None:
    """The default preparation of a worker."""


class Workers:
    """`count` processes, each started at its first task and ended by `close`, or by leaving the with block.

    limit: seconds for one task; prepare: called once in a new process, outside the limit, for slow imports. It and the
    functions of `map` are pickled by name: they must live in a module, not in a script or a notebook.
    Raises ValueError where count < 1 or limit <= 0.
    """

    def __init__(self, count: int = 2, limit: float = 10.0, prepare: Callable[[], None] = nothing) -> None:
        if count < 1 or not limit > 0:
            raise ValueError(f"workers need count >= 1 and limit > 0 seconds, got count {count}, limit {limit}")
        self.count = count
        self._workers = [_Worker(limit, prepare) for _ in range(count)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)

    def map(self, function: Callable[..., Any], tasks: Iterable[tuple]) -> list[Answer]:
        """function(*task) for each task, in the order of the tasks.

        Reasons: "time out", "worker died", or the exception's type and first line.
        Raises RuntimeError where a worker cannot be started at all.
        """
        with ThreadPoolExecutor(self.count) as threads:
            return list(threads.map(lambda task: self._ask(function, task), tasks))

    def _ask(self, function: Callable[..., Any], task: tuple) -> Answer:
        worker = self._idle.get()
        try:
            return worker.ask(function, task)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Worker:
    def __init__(self, limit: float, prepare: Callable[[], None]) -> None:
        self.limit, self.prepare = limit, prepare
        self.process: subprocess.Popen | None = None

    def ask(self, function: Callable[..., Any], task: tuple) -> Answer:
        if self.process is None:
            self._start()
        return self._exchange(function, task, self.limit)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def _start(self) -> None:
        # One thread of linear algebra each: the processes are the parallelism.
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", "unisci.metrics.workers"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        reason = self._exchange(self.prepare, (), START_LIMIT).reason
        if reason is not None:
            self.stop()
            raise RuntimeError(f"a worker process could not start ({reason}); its own message is on standard error")

    def _exchange(self, function: Callable[..., Any], task: tuple, limit: float) -> Answer:
        process, late = self.process, threading.Event()
        message = pickle.dumps((limit, function, task))

        def kill() -> None:
            late.set()
            process.kill()

        watchdog = threading.Timer(limit, kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            process.stdin.write(message)
            process.stdin.flush()
            return Answer(*pickle.load(process.stdout))
        except (EOFError, OSError, pickle.UnpicklingError):
            self.stop()
            return Answer(None, TIME_OUT if late.is_set() else DIED)
        finally:
            watchdog.cancel()
            watchdog.join()
            if late.is_set():  # also where the answer came in the very moment of the kill
                self.stop()


def _answer(stream, quiet) -> tuple:
    try:
        limit, function, task = pickle.load(stream)
        faulthandler.dump_traceback_later(limit + GRACE, exit=True, file=quiet)  # a thread that needs no interpreter
        return function(*task), None
    except EOFError:
        raise
    except Exception as error:  # whatever one task raises is its answer
        first = str(error).strip().partition("\n")[0]
        return None, f"{type(error).__name__}: {first}" if first else type(error).__name__
    finally:
        faulthandler.cancel_dump_traceback_later()


def _serve() -> None:
    """From standard input, to its end: pickled (limit, function, task); to standard output: pickled (value, reason)."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get among the replies
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    warnings.simplefilter("ignore")
    with open(os.devnull, "w") as quiet:
        while True:
            try:
                answer = _answer(sys.stdin.buffer, quiet)
            except EOFError:
                return
            replies.write(pickle.dumps(answer))
            replies.flush()


if __name__ == "__main__":
    _serve()
