"""Streams whose evicted text comes back as a summary: what is evicted, who writes, and where it is put."""
