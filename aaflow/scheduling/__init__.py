"""Where things run: sites, slots, placement, launch commands."""
