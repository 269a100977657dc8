"""What the agent reads: jobs with their metrics, log and loss curve, and the documents of artifacts."""
