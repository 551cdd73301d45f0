"""The one loop, its start, the train state, optimizers, and the loading of what was trained."""
