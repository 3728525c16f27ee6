"""The configuration file: YAML text in, frozen records out; nothing else knows YAML."""
