"""Dataset, network, training loop, metrics, export. Python 3.8 syntax: it also runs on a Jetson Xavier NX."""
