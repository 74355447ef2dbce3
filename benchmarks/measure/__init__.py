"""What the benchmarks share: corpora, programs of ranks, figures with their spread."""
