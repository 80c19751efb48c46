"""Which runs would tell most: a sweep to make, and what to add to one."""
