"""Here be distributed systems: processes of one job, leases, storage, and what a process sets for itself."""
