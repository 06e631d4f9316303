"""From the broker to the people: collector, store, console, trace."""
