"""How Arrow data moves between operators, ranks and stages."""
