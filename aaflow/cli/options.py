"""The options that several commands share."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from aaflow.pilot import find_pilot

Paths = Annotated[
    list[str], typer.Argument(help="Folders, files, globs or fsspec URLs; name=path names a root.", show_default=False)
]
IndexOption = Annotated[Path, typer.Option("--index", help="Folder of the index.", show_default=False)]
SiteOption = Annotated[str | None, typer.Option("--site", help="Name or file of a site; by default 'local'.")]


def _known_pilot(name: str | None) -> str | None:
    """Refuse an unknown pilot before anything is listed."""
    if name is not None:
        find_pilot(name)
    return name


PilotOption = Annotated[
    str | None, typer.Option("--pilot", callback=_known_pilot, help="local, parsl, …; by default the site's.")
]
RanksOption = Annotated[int | None, typer.Option("--ranks", help="MPI ranks of a stage; by default one per core.")]
EmbedderOption = Annotated[
    str, typer.Option("--embedder", help="hash, or name or folder of a sentence-transformers model.")
]
DimOption = Annotated[int | None, typer.Option("--dim", help="Dimension of the vectors (hash only; 384 by default).")]
JsonOption = Annotated[bool, typer.Option("--json", help="End with one JSON object on stdout.")]
RunFolderOption = Annotated[Path | None, typer.Option("--run-folder", help="Parent of the run folder.")]

DetachOption = Annotated[
    bool, typer.Option("--detach", help="Make the driver the batch job (here: a background process) and return.")
]
UntilDoneOption = Annotated[
    bool, typer.Option("--until-done", help="Go on in a new job where one reached its walltime, while each gets on.")
]

FuseOption = Annotated[bool, typer.Option("--fuse/--no-fuse", help="One task group for all, or one per operator.")]
PruneOption = Annotated[bool, typer.Option("--prune", help="Drop documents of these paths that are gone.")]
PartitionsOption = Annotated[
    int | None, typer.Option(help="Partitions; by default those of the index, 64 in a new one.")
]
SplitterOption = Annotated[str | None, typer.Option(help="characters, tokens, markdown, delimiter or whole.")]
ChunkSizeOption = Annotated[int | None, typer.Option(help="Size of a chunk, in the splitter's unit.")]
OverlapOption = Annotated[int | None, typer.Option(help="Overlap of two chunks, in the splitter's unit.")]
TextColumnOption = Annotated[list[str] | None, typer.Option(help="Columns of records that are text; may be repeated.")]
IdColumnOption = Annotated[str | None, typer.Option(help="Column of records that names a document.")]
MetadataOption = Annotated[list[str] | None, typer.Option(help="name:type of a metadata field; may be repeated.")]
WhereOption = Annotated[
    str | None,
    typer.Option("--where", help="Keep documents for which this is true, such as 'metadata.year >= 2000'."),
]
JoinOption = Annotated[Path | None, typer.Option("--join", help="Table whose columns become metadata of documents.")]
OnOption = Annotated[
    str | None, typer.Option("--on", help="What --join meets by: COLUMN of documents, or COLUMN=KEY of the table.")
]


class Rows(str, enum.Enum):
    """What can be deduplicated."""

    DOCUMENTS = "documents"
    CHUNKS = "chunks"


DeduplicateOption = Annotated[
    Rows | None, typer.Option("--deduplicate", help="Keep one of those that have the same content.")
]
FormatOption = Annotated[str | None, typer.Option("--format", help="Read every file as this format.")]
EncodingOption = Annotated[str | None, typer.Option(help="Encoding of text and records; UTF-8 by default.")]
HiddenOption = Annotated[bool, typer.Option("--hidden", help="Read files whose names begin with a dot, too.")]
MaxRecordOption = Annotated[int | None, typer.Option(help="A larger document or record is skipped.")]
