"""Other programs' files -> a configuration of ours, and a list of what did not come along."""
