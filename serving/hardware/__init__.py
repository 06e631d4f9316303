"""The robot's body: an interface, and one module for each kind of it, chosen once by the configuration."""
