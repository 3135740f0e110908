"""What we claim, measured beside the peers on the same machine, checked before it is timed."""
