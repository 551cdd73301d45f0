"""The one loop, train state, optimizers, checkpoints, metrics, loading."""
