"""The graph on threads: the earliest step first, nothing kept that is not needed, nothing under way when it ends."""

import itertools
import threading
import time
import weakref
from typing import Any

import pytest
from dask._task_spec import DataNode, Task, TaskRef

from distmf.engine import EnoughError, Graph
from distmf.threads import ThreadEngine


def test_run__takes_the_earliest_step_first() -> None:
    order: list[int] = []
    tasks = {n: Task(n, order.append, n) for n in range(20)}
    steps = {n: (7 * n) % 20 for n in tasks}
    ThreadEngine(1).run(Graph(tasks, steps=steps), list(tasks))
    assert order == sorted(tasks, key=steps.__getitem__)


def test_run__returns_values_in_order_and_tells_of_each_as_it_comes() -> None:
    tasks = {"a": DataNode("a", 1), **{n: Task(n, lambda a, n: a + n, TaskRef("a"), n) for n in range(5)}}
    seen: dict[Any, Any] = {}
    keys = [3, "a", 1]
    assert ThreadEngine(2).run(Graph(tasks), keys, seen.__setitem__) == [4, 1, 2]
    assert seen == {3: 4, "a": 1, 1: 2}


def test_run__forgets_what_nothing_needs_any_more() -> None:
    class Value:
        pass

    alive: list[weakref.ref[Value]] = []
    most = []

    def grow(_: Value | None) -> Value:
        most.append(sum(ref() is not None for ref in alive))
        value = Value()
        alive.append(weakref.ref(value))
        return value

    tasks: dict[Any, Any] = {0: Task(0, grow, None)}
    tasks |= {n: Task(n, grow, TaskRef(n - 1)) for n in range(1, 50)}
    last = ThreadEngine(2).run(Graph(tasks), [49])[0]
    assert max(most) <= 2
    assert [ref() for ref in alive if ref() is not None] == [last]


@pytest.mark.parametrize("where", ["task", "on_done"])
def test_run__raises_when_nothing_is_under_way_any_more(where: str) -> None:
    running, most = [], []
    counter, lock = itertools.count(), threading.Lock()

    def work(n: int) -> int:
        with lock:
            running.append(n)
            most.append(len(running))
        time.sleep(0.02 * (1 + n % 2))
        running.remove(n)
        if where == "task" and n == 8:
            raise EnoughError
        return n

    def on_done(key: Any, value: Any) -> None:
        if where == "on_done" and next(counter) == 8:
            raise EnoughError

    tasks = {n: Task(n, work, n) for n in range(100)}
    with pytest.raises(EnoughError):
        ThreadEngine(2).run(Graph(tasks), list(tasks), on_done)
    assert not running
    assert max(most) == 2
    assert len(most) < 15


def test_thread_engine__needs_a_thread() -> None:
    with pytest.raises(ValueError, match="threads is 0; it is a whole number, at least 1"):
        ThreadEngine(0)


def test_run__gives_up_a_value_to_the_task_that_alone_needs_it() -> None:
    seen: dict[str, Any] = {}

    def look(name: str, *values: Any) -> str:
        seen[name] = values
        return name

    def task(name: str, *needs: str) -> Task:
        return Task(name, look, name, *map(TaskRef, needs))

    names = {"a": (), "b": ("a",), "c": ("a",), "part": ("c",), "save": ("c",), "d": ("c",)}
    names |= {"e": ("part",), "f": ("e",), "g": ("e",)}
    tasks = {name: task(name, *needs) for name, needs in names.items()}
    consumable = {"a": (), "b": (), "c": (), "part": ("save",), "d": (), "e": (), "f": (), "g": ()}
    steps = dict(zip(tasks, range(len(tasks)), strict=True))
    graph = Graph(tasks, steps=steps, given_up=lambda value: ("own", value), consumable=consumable)
    ThreadEngine(1).run(graph, ["b", "save", "g"])
    assert seen["b"] == ("a",)  # c needs it too
    assert seen["c"] == (("own", "a"),)
    assert seen["part"] == ("c",)
    assert seen["d"] == (("own", "c"),)
    assert seen["e"] == (("own", "part"),)
    assert (seen["f"], seen["g"]) == (("e",), (("own", "e"),))
    seen.clear()
    steps |= {"d": 98}  # which does not read what the part holds
    ThreadEngine(1).run(graph._replace(steps=steps), ["save", "g", "d"])
    assert seen["e"] == (("own", "part"),)
    seen.clear()
    steps |= {"save": 99}  # which does
    ThreadEngine(1).run(graph._replace(steps=steps), ["save", "g", "d"])
    assert seen["e"] == ("part",)
    seen.clear()
    ThreadEngine(1).run(graph, ["a", "b", "c", "d", "g"])  # what is wanted is never given up
    assert (seen["c"], seen["d"]) == (("a",), ("c",))
    assert seen["g"] == (("own", "e"),)
