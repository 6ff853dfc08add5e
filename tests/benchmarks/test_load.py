"""`load`: our reader beside the library's and a plain parallel read."""

import argparse
import functools

from benchmarks import load


def test_reading_is_measured_beside_the_library_and_a_plain_read(tmp_path, monkeypatch):
    """In this process: three ways of importing everything take longer than all that is to be seen here."""
    small = {"attention_head_dim": 16, "num_attention_heads": 3, "joint_attention_dim": 16, "axes_dims_rope": (4, 6, 6)}
    written = []

    class Sender:
        send = written.append

    def measured(way, file, device, threads):
        load.measure(Sender, way, file, device, threads)
        return written[-1]

    monkeypatch.setattr(load, "write", functools.partial(load.write, **small))
    monkeypatch.setattr(load, "in_own_process", measured)
    options = argparse.Namespace(gb=1, folder=tmp_path, threads=2, rounds=1, pause=0)
    rows, facts = load.run(options)
    assert [(row["read by"], row["from"]) for row in rows] == [
        (way, place) for place in ("disk", "memory") for way in load.WAYS
    ]
    assert all(row["lowest"] == row["highest"] >= 0 and row["share"] >= 0 for row in rows) and len(written) == 6
