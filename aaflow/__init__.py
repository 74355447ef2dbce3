"""aaflow: agentic RAG workflows as MPI task groups of the pilots you already run."""

__version__ = "0.1.0"
