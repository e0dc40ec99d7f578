"""Loading, checking and tokenising of a run's rows."""
