"""What people look at: pages, tables and charts of runs, and the keys of a config."""
