"""A back end of the engine worker that does wrong when it is shown a black frame; the engine file says what.

`hang`, `exit`, `nan`, `shape` or `grow`; anything else: nothing wrong. Otherwise it answers as the tests' tiny network.
"""

import os
import time

import numpy as np

GROWS_BY_BYTES = 10 * 1000 * 1000  # a run
GROWS_TO = 60  # runs


class Backend:
    def __init__(self, engine_file, threads, preprocess):
        with open(engine_file) as file:
            self._wrong = file.read()
        self.name = "misbehaving"
        self.batch = np.zeros(preprocess.INPUT_SHAPE, np.float32)
        self.logits = np.zeros(preprocess.OUTPUT_SHAPE, np.float32)
        self._kept = []
        self._runs = 0

    def run(self):
        self._runs += 1
        brightness = float(self.batch.mean())
        self.logits[0] = (8 - brightness / 16, brightness / 16 - 8)
        if brightness >= 10 or self._runs <= 3:  # the worker warms up with black frames
            return
        if self._wrong == "hang":
            time.sleep(60)
        elif self._wrong == "exit":
            os._exit(3)
        elif self._wrong == "nan":
            self.logits[0] = np.nan
        elif self._wrong == "shape":
            self.logits = np.zeros((1, 3), np.float32)
        elif self._wrong == "grow" and len(self._kept) < GROWS_TO:
            self._kept.append(b"x" * GROWS_BY_BYTES)
