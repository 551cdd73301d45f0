"""What is done with trained runs: sampling, encoding, decoding, caches of tokens."""
