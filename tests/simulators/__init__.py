"""Stand-ins behind jetloop's real interfaces, for tests."""
