"""What a run writes and obeys while it goes on: checkpoints, records of metrics, signals, faults."""
