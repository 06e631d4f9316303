"""The arena: a room, a small robot in it, what its camera sees, and what it hits."""
