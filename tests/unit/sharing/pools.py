"""Shares through multiprocessing with each start method; run as a script, prints what came of it as JSON."""

from __future__ import annotations

import json
import multiprocessing
import sys
from typing import Any

import memplat


def work(handle: memplat.Handle, number: int) -> int:
    with memplat.attach(handle) as view:
        total = sum(view[:16])
        if not view.readonly:
            view[0] = number
        return total


def from_queue(queue: multiprocessing.Queue[memplat.Handle], answers: multiprocessing.Queue[int]) -> None:
    answers.put(work(queue.get(), 9))


def main() -> None:
    method = sys.argv[1]
    context: Any = multiprocessing.get_context(method)
    found: dict[str, Any] = {}
    with memplat.open("memfd") as memory:
        pages = memory.allocate(1 << 16, fill=bytes(range(16)))
        handles = [memory.share(pages) for _ in range(2)]
        handles.append(memory.share(pages, writable=True))
        with context.Pool(2) as pool:
            found["sums"] = [pool.apply(work, (handle, 7)) for handle in handles]
            found["waited"] = all(handle.wait(20) for handle in handles)
        queue, answers = context.Queue(), context.Queue()
        inherited = memory.share(pages)
        started = [
            context.Process(target=from_queue, args=(queue, answers)),
            context.Process(target=work, args=(inherited, 8)),
        ]
        for process in started:
            process.start()
        queue.put(memory.share(pages))
        found["queue"] = answers.get()
        for process in started:
            process.join()
        found["codes"] = [process.exitcode for process in started]
        found["inherited"] = inherited.wait(20)
        found["first"] = memory.read(memplat.FileRange(pages.start, pages.start + 1))[0]
        found["refs"] = memory.inspect(pages.start).refs
        memory.decref(pages)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
