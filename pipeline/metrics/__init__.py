"""What is measured: evaluate.Metric objects and pure functions, each number with its uncertainty."""
