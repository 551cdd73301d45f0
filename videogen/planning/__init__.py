"""Plans for hardware that is not there, and the search for a mesh."""
