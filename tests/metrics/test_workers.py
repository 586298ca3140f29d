"""Workers: what hangs, dies or raises is an answer with a reason, and everything else is answered in order."""

import math
import os
import subprocess
import sys
import time

import pytest

from unisci.metrics.workers import DIED, TIME_OUT, Answer, Workers


def test_answers_come_in_the_order_of_the_tasks():
    with Workers(2, limit=60) as workers:
        assert workers.map(divmod, [(i, 3) for i in range(20)]) == [Answer(divmod(i, 3), None) for i in range(20)]
        assert workers.map(len, []) == []


def test_what_is_stuck_dies_or_raises_is_counted_and_the_rest_goes_on():
    """sum over a range is one loop inside compiled code, which no signal handler of Python would ever end."""
    with Workers(1, limit=3) as workers:
        start = time.monotonic()
        assert workers.map(sum, [(range(10**13),), ([1, 2],)]) == [Answer(None, TIME_OUT), Answer(3, None)]
        assert time.monotonic() - start >= 3
        assert workers.map(os._exit, [(3,)]) == [Answer(None, DIED)]
        assert workers.map(math.sqrt, [(-1.0,), (4.0,)]) == [
            Answer(None, "ValueError: math domain error"),
            Answer(2.0, None),
        ]


def test_a_library_that_prints_does_not_disturb_the_answers():
    with Workers(1, limit=60) as workers:
        assert workers.map(os.write, [(1, b"noise\n")]) == [Answer(6, None)]
        assert workers.map(print, [("noise",)]) == [Answer(None, None)]
        assert workers.map(len, [("abc",)]) == [Answer(3, None)]


def test_a_worker_that_cannot_prepare_is_an_error_not_a_count():
    with Workers(1, prepare=os.abort) as workers, pytest.raises(RuntimeError, match="could not start"):
        workers.map(len, [("abc",)])


def test_a_script_without_a_main_guard_may_use_workers():
    code = (
        "from unisci.metrics.workers import Workers\nwith Workers(1, 60) as w: print(w.map(len, [('abc',)])[0].value)"
    )
    done = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["3"]


def test_a_stuck_worker_ends_itself_when_its_parent_was_killed(tmp_path):
    code = (
        "import os, threading\nfrom unisci.metrics import workers\n"
        "w = workers.Workers(1, 1)\npid = w.map(os.getpid, [()])[0].value\nprint(pid, flush=True)\n"
        "threading.Timer(0.3, os._exit, [0]).start()\nw.map(sum, [(range(10**13),)])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=300, check=True)
    pid, end = int(done.stdout), time.monotonic() + 60
    while time.monotonic() < end and _runs(pid):
        time.sleep(0.2)
    assert not _runs(pid)


def _runs(pid):
    """A zombie, which nobody collects where the first process of a container does not, has ended too."""
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_no_process_is_left():
    with Workers(2, limit=60) as workers:
        pids = {a.value for a in workers.map(os.getpid, [()] * 8)}
    assert 1 <= len(pids) <= 2 and os.getpid() not in pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(("count", "limit"), [(0, 1.0), (1, 0.0), (1, float("nan"))])
def test_refuses_no_worker_and_no_time(count, limit):
    with pytest.raises(ValueError, match="count >= 1 and limit > 0"):
        Workers(count, limit)
