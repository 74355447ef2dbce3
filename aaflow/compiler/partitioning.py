"""Who owns a partition and who reads a split: deterministic, balanced by bytes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aaflow.operators.listing import split_sizes


def balance(
    weights: npt.NDArray[np.int64], ranks: int, loads: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.int32]:
    """Deal weighted things to ranks, heaviest first to the least loaded (LPT, Graham 1969: at most 4/3 of the best).

    Args:
        weights: int64 [n].
        ranks: number of ranks.
        loads: int64 [ranks], what each rank carries already.

    Returns:
        The rank of each thing, int32 [n]; ties go to the lower index and the lower rank.
    """
    carried = np.zeros(ranks, np.int64) if loads is None else loads.astype(np.int64, copy=True)
    dealt = np.zeros(len(weights), np.int32)
    for index in np.argsort(-weights, kind="stable"):
        rank = int(np.argmin(carried))
        dealt[index] = rank
        carried[rank] += weights[index]
    return dealt


def partition_owners(listing: pa.Table | None, partitions: int, ranks: int) -> tuple[int, ...]:
    """The rank that owns each partition, balanced by the bytes that the listing holds for it.

    Records of big files belong to many partitions: their bytes count evenly for all.
    """
    weights = np.ones(partitions, np.int64)
    if listing is not None and listing.num_rows:
        sizes = split_sizes(listing)
        partition = listing["partition"].to_numpy()
        whole = partition >= 0
        np.add.at(weights, partition[whole], sizes[whole])
        weights += int(sizes[~whole].sum()) // partitions
    return tuple(int(rank) for rank in balance(weights, ranks))


def split_readers(listing: pa.Table, owners: tuple[int, ...], ranks: int) -> npt.NDArray[np.int32]:
    """The rank that reads each split of a listing, int32 [splits].

    A whole document is read by the owner of its partition, so its rows need no shuffle. Splits of record files are
    balanced by bytes inside each tranche, on top of what the ranks read there already.
    """
    partition = listing["partition"].to_numpy()
    tranche = listing["tranche"].to_numpy()
    sizes = split_sizes(listing)
    readers = np.zeros(len(partition), np.int32)
    whole = partition >= 0
    readers[whole] = np.asarray(owners, np.int32)[partition[whole]]
    for current in np.unique(tranche[~whole]):
        here = tranche == current
        loads = np.bincount(readers[here & whole], weights=sizes[here & whole], minlength=ranks).astype(np.int64)
        records = np.flatnonzero(here & ~whole)
        readers[records] = balance(sizes[records], ranks, loads)
    return readers
