"""What `make speed` does: a model of random weights, trials against full KV in turns, rows and bounds."""
