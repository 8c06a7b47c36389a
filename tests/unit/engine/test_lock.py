"""The compiled core's lock does what :class:`threading.RLock` does."""

from __future__ import annotations

import importlib
import threading
from typing import Any

import pytest

from tests.needs import needs
from tests.unit.engine.helpers import within


@pytest.fixture(params=["threading", "compiled"])
def lock(request: pytest.FixtureRequest) -> Any:
    """A re-entrant lock, of either kind."""
    if request.param == "threading":
        return threading.RLock()
    try:
        core: Any = importlib.import_module("memplat._native.core")
    except ImportError as error:
        needs("compiler", str(error))
    return core.Lock()


def test_it_knows_whether_this_thread_owns_it(lock: Any) -> None:
    assert not lock._is_owned()
    with lock:
        assert lock._is_owned()
        assert within(lambda: lock._is_owned()) is False
    assert not lock._is_owned()


def test_it_may_be_taken_again_by_its_owner_and_has_to_be_given_as_often(lock: Any) -> None:
    assert lock.acquire()
    assert lock.acquire(blocking=False)
    lock.release()
    assert within(lambda: lock.acquire(blocking=False)) is False
    lock.release()
    assert within(lambda: lock.acquire(blocking=False)) is True  # and that thread is gone with it
    assert lock.acquire(timeout=0.01) is False


def test_only_its_owner_can_give_it(lock: Any) -> None:
    with pytest.raises(RuntimeError, match="un-acquired"):
        lock.release()
    with lock, pytest.raises(RuntimeError, match="un-acquired"):
        within(lock.release)


@pytest.mark.parametrize("arguments", [(False, 1), (True, -2)])
def test_a_timeout_that_means_nothing_is_refused(lock: Any, arguments: tuple[bool, float]) -> None:
    with pytest.raises(ValueError, match="timeout"):
        lock.acquire(*arguments)


def test_a_condition_lets_go_of_all_of_it_and_takes_all_of_it_back(lock: Any) -> None:
    condition = threading.Condition(lock)
    told = []

    def tell() -> None:
        with condition:
            told.append(1)
            condition.notify_all()

    with condition, condition:
        thread = threading.Thread(target=tell)
        thread.start()
        assert condition.wait_for(lambda: told, timeout=30)
        assert lock._is_owned()
        assert within(lambda: lock.acquire(blocking=False)) is False
    thread.join()
    assert not lock._is_owned()


def test_it_keeps_threads_out(lock: Any) -> None:
    count = 0

    def work() -> None:
        nonlocal count
        for _ in range(2_000):
            with lock:
                seen = count
                count = seen + 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count == 8_000
