"""Failing disks and dying processes, at any call one likes."""

import os


class FaultyOS:
    """The os module, whose ``n``-th call of a writing function raises ``fault`` and does nothing.

    ``short``: writes take 5 bytes at most. ``dead``: all later calls raise too.
    """

    CALLS = ("open", "write", "fsync", "close", "replace", "unlink", "listdir")

    def __init__(self, n=-1, fault=None, short=False, dead=False, calls=CALLS):
        self.n, self.fault, self.short, self.dead, self.calls, self.count = n, fault, short, dead, calls, 0

    def __getattr__(self, name):
        real = getattr(os, name)
        if name not in self.calls:
            return real

        def call(*args, **kwargs):
            self.count += 1
            if self.count - 1 == self.n or (self.dead and self.count > self.n):
                if name == "close":
                    real(*args)
                raise self.fault
            if name == "write" and self.short:
                return real(args[0], args[1][:5])
            return real(*args, **kwargs)

        return call


class Crash(BaseException):
    """Stands for the end of the process: nothing after it runs on disk."""
