"""A long benchmark in parts: each in a process of its own, within a time, gone on with where the last call ended.

What a part has measured is kept at once; a part that is killed loses only what it had not finished, and the next call
measures that. A row that failed beside others that were measured has failed for good, unless its model did not load. A
part of which every row failed has its turn again in the next call, after the others: what it failed by may be mended by
then. Knows nothing of what parts measure.
"""

import argparse
import math
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from .rows import FAILED, Record

PART_SECONDS = 570  # what one part may take at most: machines are lent by the ten minutes
EXIT_SECONDS = 30  # what a process may take to go once its work is over
Send = Callable[[dict], None]


@dataclass(frozen=True)
class Part:
    """`work(send, todo, **arguments)`, a module's function, measures the rows of `todo` and sends each at once.

    `rows`: what the part measures, each with the fields that are known ahead. `seconds`: a call with less time left
    does not begin the part. `obstacle`: why the part cannot be measured here, empty if it can.
    """

    name: str
    rows: tuple[dict, ...] = field(hash=False)
    work: Callable[..., None]
    arguments: dict = field(hash=False)
    seconds: float = 0
    obstacle: str = ""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", nargs="+", help="only these (default: all, in order of worth)")
    parser.add_argument("--seconds", type=float, help="end within so many; the next call goes on (default: no end)")
    parser.add_argument("--again", action="store_true", help="measure what is recorded already once more")
    parser.add_argument("--list", action="store_true", help="name the parts and measure nothing")


def end_of(options: argparse.Namespace) -> float:
    """When this call has to be over, by the monotonic clock."""
    return time.monotonic() + (options.seconds or math.inf)


def run(
    parts: Sequence[Part], record: Record, options: argparse.Namespace, end: float, limit: float = PART_SECONDS
) -> None:
    """Measure what is not recorded yet, in the order of the parts, until `end` of the monotonic clock.

    `limit`: seconds that one part may take. Ends the program where `options` name a part that there is not.
    """
    chosen = [part for part in parts if not options.part or part.name in options.part]
    if unknown := set(options.part or ()) - {part.name for part in parts}:
        raise SystemExit(f"There is no part {', '.join(sorted(unknown))}; there are {', '.join(p.name for p in parts)}")
    for part in chosen:
        for row in part.rows:
            record.expect(row, part.obstacle or "not yet")
    record.write()
    if options.list:
        return
    failed = {part.name for part in chosen if all_failed(part, record)}
    for part in sorted(chosen, key=lambda part: part.name in failed):
        todo = [row for row in part.rows if options.again or part.name in failed or not record.is_final(row)]
        left = end - time.monotonic()
        if part.obstacle:
            say(part, f"not measured: {part.obstacle}")
        elif not todo:
            say(part, "measured before")
        elif left < part.seconds:
            say(part, "left for the next call")
        else:
            if part.name in failed:
                say(part, "every row failed before and is tried again")
            say(part, measure(part, todo, record, left, limit))


def say(part: Part, words: str) -> None:
    print(f"{part.name}: {words}", flush=True)


def all_failed(part: Part, record: Record) -> bool:
    outcomes = [record.outcome(row) or "" for row in part.rows]
    return all(outcome.startswith(FAILED) for outcome in outcomes)


def measure(part: Part, todo: list[dict], record: Record, left: float, limit: float) -> str:
    """Measure one part and record its rows; how it went, in words."""
    started, received = time.monotonic(), []

    def keep(row: dict) -> None:
        received.append(row)
        record.add(row)

    code = run_in_process(part, todo, keep, min(left, limit))
    seconds = time.monotonic() - started
    keys = {record.key_of(row) for row in received}
    missing = [row for row in todo if record.key_of(row) not in keys]
    if code is None and limit > left:
        return f"ended after {seconds:.0f} s with {len(missing)} of {len(todo)} to go: for the next call"
    why = f"not over after {limit:g} s" if code is None else f"its process ended with exit code {code}"
    for row in missing:
        record.add(row | {"measured": f"{FAILED}: {why}"})
    failures = Counter(row["measured"] for row in received if row["measured"].startswith(FAILED))
    words = [f"{len(received)} rows in {seconds:.0f} s", *(f"{count} {failure}" for failure, count in failures.items())]
    return "; ".join(words + [why] * bool(missing))


def run_in_process(part: Part, todo: list[dict], keep: Callable[[dict], None], seconds: float) -> int | None:
    """Run the part in a process of its own: a card's memory is free once its process is gone.

    `keep` is called with every row. The process's exit code, or None where its time ran out.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run_in_child, args=(sender, part.work, todo, part.arguments), daemon=True)
    process.start()
    sender.close()
    end = time.monotonic() + seconds
    try:
        while receiver.poll(max(0.0, end - time.monotonic()) if end < math.inf else None):
            keep(receiver.recv())
        return None
    except EOFError:  # the process has closed its end: it has sent all its rows
        process.join(EXIT_SECONDS)
        return process.exitcode
    finally:
        process.kill()
        process.join()
        receiver.close()


def run_in_child(sender: Connection, work: Callable[..., None], todo: list[dict], arguments: dict) -> None:
    with sender:
        work(sender.send, todo, **arguments)
