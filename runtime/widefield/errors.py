"""Every fault that is the user's to mend: what was found, what was wanted, what to do, in one line.

    WidefieldError
      BadBundle        a bundle that is damaged, newer than this runtime, or not a bundle
      BadCheckpoint    a checkpoint that cannot be read, or must not be (pickles)
      BadLatents       latents or an image of the wrong shape, type, length, or with NaN
      BadRequest       options that contradict each other or the bundle
      OverBudget       a memory budget that cannot work, with the smallest that would
      StoreError       an output that cannot be written, resumed or read
      MissingBackend   an engine or a library that is not installed, with the extra to install
      Cancelled        a read that somebody stopped
      UnsupportedGraph an autoencoder with an operation that the localising pass has no rule for

The command line prints these as `error: ...` and exits 1. Anything else is a bug of ours and keeps its traceback.
"""


class WidefieldError(Exception):
    """Root of the tree above."""


class BadBundle(WidefieldError):
    """A bundle that is damaged, newer than this runtime, or not a bundle."""


class BadCheckpoint(WidefieldError):
    """A checkpoint that cannot be read, or must not be."""


class BadLatents(WidefieldError):
    """Latents or an image of the wrong shape, type or length, or with NaN."""


class BadRequest(WidefieldError):
    """Options that contradict each other or the bundle."""


class OverBudget(WidefieldError):
    """A memory budget that cannot work. `smallest_nbytes` would."""

    def __init__(self, message: str, *, smallest_nbytes: int) -> None:
        super().__init__(message)
        self.smallest_nbytes = smallest_nbytes


class StoreError(WidefieldError):
    """An output that cannot be written, resumed or read."""


class MissingBackend(WidefieldError):
    """An engine or a library that is not installed."""


class Cancelled(WidefieldError):
    """A read that was stopped by whoever asked for it."""


class UnsupportedGraph(WidefieldError):
    """An operation that the localising pass has no rule for."""


def first_line(error: Exception) -> str:
    """What other people's errors say, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]
