"""From a RunReport to what its page shows: one module a part, each pure, each returning frozen records."""
