"""videogen: pretraining of generative video models in JAX, from two CPU cores to a pod."""
