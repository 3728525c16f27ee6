"""The configuration file: YAML text in, frozen records out. No other package reads YAML."""
