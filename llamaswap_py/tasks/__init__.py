"""Background work: guarded tasks, threads that do not hold up the exit, one common tick."""
