"""In the way of PyTorch in processes that tests start: the commands must not need it, nor wait for its import."""

raise ModuleNotFoundError("No module named 'torch'", name="torch")
