"""What is known before anything starts: here, or for a cluster that is elsewhere. Pure but for a look at files."""
