"""Real servers for tests, each a fixture of its own."""
