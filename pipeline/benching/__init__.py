"""What bench measures and how: the plan, the tallies and rows of trials, the machine."""
