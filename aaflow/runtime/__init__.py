"""What runs inside a task group, and what keeps a run alive or ends it."""
