"""Training: the arguments and their checks (light), and the run itself (heavy, in a worker)."""
