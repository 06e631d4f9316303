"""`jetloop demo`: the whole loop on one machine, each part its own process, in a scratch workspace."""
