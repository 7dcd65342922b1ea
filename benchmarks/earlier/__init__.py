"""An earlier commit as a peer: what a change gained since, beside today's code in the same run.

    process.py     takes a commit's folders out of git and keeps a process that runs them
    serve.py       what that process does: times evaluations and attention when asked
    attention.py   attention alone, with the commit as one more peer

A backend of today shows what that backend costs, but shares all else that has become faster; only
the earlier code itself is the old path. Two versions of one package do not fit in a process, so the
earlier one has its own, which waits while today's code runs. It is asked run by run, so that the
two take turns like all peers (timing.py), and tells its own wall and processor time.
"""

from benchmarks.earlier.process import BEFORE, DEFAULT, EarlierCommit, earlier, full_name, wire

__all__ = ["BEFORE", "DEFAULT", "EarlierCommit", "earlier", "full_name", "wire"]
