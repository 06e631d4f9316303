"""What jetloop's parts agree on: sessions, releases, events. Change one only with its version number.

Python 3.8 syntax: training/ reads them too.
"""
