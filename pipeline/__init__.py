"""PeakChat Pipeline: from medical dialogues to a measured, quantised chat model that runs on a CPU."""
