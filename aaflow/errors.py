"""Every error aaflow raises on purpose.

All of them derive from :class:`AaflowError`; the command line prints their text and nothing else, so a text says what
happened, where (operator, stage, rank, file, record) and what a person can do about it.
"""

from __future__ import annotations


class AaflowError(Exception):
    """Base of every error that aaflow raises on purpose."""


class InputError(AaflowError):
    """An input can't be used as it was given: a missing path, an unknown format, two roots that name one document."""


class WorkflowError(AaflowError):
    """A workflow can't be compiled; the text names the operator."""


class PlacementError(AaflowError):
    """A plan does not fit the site; the text says what is missing."""


class SiteError(AaflowError):
    """A site file is unknown, unreadable or wrong; the text names the file and the key."""


class PilotError(AaflowError):
    """A pilot or its engine can't be used as asked, or the engine was lost while a run depended on it."""


class DependencyError(AaflowError):
    """An optional package that this needs can't be imported; the text says which extra installs it."""


class RunError(AaflowError):
    """A run ended before its work was done; the index stays at its last generation."""


class RunCancelled(RunError):
    """A person cancelled a run: ``aaflow cancel``."""


class StageError(RunError):
    """A task group failed.

    Attributes:
        stage: name of the stage.
        rank: the rank that failed first, or None when the group was ended from outside.
        log: path of the log to read.
    """

    def __init__(self, message: str, *, stage: str, rank: int | None = None, log: str | None = None) -> None:
        super().__init__(message)
        self.stage = stage
        self.rank = rank
        self.log = log

    def __reduce__(self) -> tuple[object, ...]:
        return _stage_error, (str(self), self.stage, self.rank, self.log)


def _stage_error(message: str, stage: str, rank: int | None, log: str | None) -> StageError:
    return StageError(message, stage=stage, rank=rank, log=log)


class JobRefused(PilotError):
    """The batch system took no job; nothing of it is left there."""


class JobEnded(PilotError):
    """The batch job that carried a run ended before the run did.

    Attributes:
        job: its id.
        walltime: whether it reached its walltime.
    """

    def __init__(self, message: str, *, job: str, walltime: bool) -> None:
        super().__init__(message)
        self.job = job
        self.walltime = walltime

    def __reduce__(self) -> tuple[object, ...]:
        return _job_ended, (str(self), self.job, self.walltime)


def _job_ended(message: str, job: str, walltime: bool) -> JobEnded:
    return JobEnded(message, job=job, walltime=walltime)


class CollectiveError(RunError):
    """A rank can't take part in a collective operation of its group; every rank raises this, with the same text.

    Attributes:
        rank: the (first) rank that is to blame.
    """

    def __init__(self, message: str, *, rank: int) -> None:
        super().__init__(message)
        self.rank = rank

    @classmethod
    def of(cls, operation: str, rank: int, cause: BaseException | str) -> CollectiveError:
        """The error that says which rank can't take part in which operation, and why."""
        return cls(f"{operation}: rank {rank} can't take part: {cause}", rank=rank)

    def __reduce__(self) -> tuple[object, ...]:
        return _collective_error, (str(self), self.rank)


def _collective_error(message: str, rank: int) -> CollectiveError:
    return CollectiveError(message, rank=rank)


class EdgeError(RunError):
    """An edge between two stages can't be set up or used; the text names the edge, the rank and what to do."""


class PeerLost(EdgeError):
    """The rank at the other end of an edge is gone before the edge was done.

    Attributes:
        stage: stage of the lost rank.
        rank: the lost rank.
    """

    def __init__(self, message: str, *, stage: str, rank: int) -> None:
        super().__init__(message)
        self.stage = stage
        self.rank = rank

    def __reduce__(self) -> tuple[object, ...]:
        return _peer_lost, (str(self), self.stage, self.rank)


def _peer_lost(message: str, stage: str, rank: int) -> PeerLost:
    return PeerLost(message, stage=stage, rank=rank)


class EdgeCancelled(EdgeError):
    """This rank gave its edges up while something waited on them."""


class VectorIndexError(AaflowError):
    """Base of the errors of an index folder; the text names the folder."""


class IndexMissing(VectorIndexError):
    """There is no index at this path."""


class IndexCorrupt(VectorIndexError):
    """A file of the index is missing, damaged or not what the manifest says."""


class IndexLocked(VectorIndexError):
    """Another writer holds the index; the text says who."""


class StaleEpoch(VectorIndexError):
    """A writer whose epoch is older than the index's tried to write."""


class EmbedderMismatch(VectorIndexError):
    """The index was built with another embedder or dimension; the text says both."""
