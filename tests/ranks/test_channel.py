"""The channel between two ranks: whichever process ends or is stuck, the other hears it, and nothing is left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from qwen_worker.ranks.channel import Channel, RankEnded, progress_of

from ..conftest import ROOT
from ..support.patience import exit_status, wait_until

# What a child does with its end of the channel, in a few lines that import no torch.
CHILD = """
import os, sys
from multiprocessing.connection import Connection
from qwen_worker.ranks.channel import Channel, die_with
parent = int(sys.argv[2])
die_with(parent)
channel = Channel(Connection(int(sys.argv[1])), lambda: os.getppid() == parent, lambda: os._exit(0))
while True:
    question = channel.receive()
    if question == "work":
        total = sum(range(60_000_000))
    channel.send(question)
"""
PARENT = f"""
import multiprocessing, os, subprocess, sys, time
ours, theirs = multiprocessing.Pipe()
child = subprocess.Popen([sys.executable, "-c", '''{CHILD}''', str(theirs.fileno()), str(os.getpid())],
                         pass_fds=(theirs.fileno(),))
print(child.pid, flush=True)
time.sleep(3600)
"""


@pytest.fixture
def other():
    """A child at the other end: (its channel's end here, the process, an event that is set when it has ended)."""
    ours, theirs = multiprocessing.Pipe()
    arguments = [sys.executable, "-c", CHILD, str(theirs.fileno()), str(os.getpid())]
    process, ended = subprocess.Popen(arguments, pass_fds=(theirs.fileno(),), cwd=ROOT), threading.Event()
    theirs.close()
    yield Channel(ours, lambda: process.poll() is None, ended.set), process, ended
    process.kill()
    process.wait()


def test_questions_are_answered_in_their_order(other):
    channel, process, _ = other
    for question in ("one", ("two", {"three": 3})):
        channel.send(question)
    assert channel.receive(progress_of(process.pid)) == "one"
    assert channel.receive(progress_of(process.pid)) == ("two", {"three": 3})


def test_an_end_is_heard_at_once_by_whoever_waits_and_by_who_does_not(other):
    channel, process, ended = other
    channel.send("hello")
    channel.receive(progress_of(process.pid))
    started = time.monotonic()
    process.kill()
    with pytest.raises(RankEnded, match="it has ended"):
        channel.receive(progress_of(process.pid))
    assert ended.wait(30) and time.monotonic() - started < 30
    with pytest.raises(RankEnded):
        channel.receive()
    with pytest.raises(RankEnded):
        channel.send("too late")
        channel.send("the first may still find the socket open")


def test_a_process_that_computes_is_waited_for_and_one_that_is_stuck_is_not(other):
    channel, process, ended = other
    channel.send("work")
    assert channel.receive(progress_of(process.pid), still_seconds=2.5) == "work"
    process.send_signal(signal.SIGSTOP)
    channel.send("anything")
    with pytest.raises(RankEnded, match="neither computed nor read for 2 seconds"):
        channel.receive(progress_of(process.pid), still_seconds=2)
    assert not ended.is_set()  # the process is there, which only its progress tells from one that works


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_with_its_parent_however_that_ends(number):
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    child = int(parent.stdout.readline())
    wait_until(lambda: psutil.Process(child).num_threads() > 1, child)  # its channel listens
    parent.send_signal(number)
    exit_status(parent)
    wait_until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)
    parent.stdout.close()
