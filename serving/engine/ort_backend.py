"""Runs an ONNX file with ONNX Runtime on the CPU, in buffers that are bound once.

Loaded by the engine worker alone. Python 3.6 syntax.
"""

import numpy as np
import onnxruntime


class Backend(object):
    """One loaded engine.

    Attributes:
        name: the runtime and its version.
        batch: (1, 224, 224, 3) float32 in 0..255, RGB: the input, written before run().
        logits: (1, 2) float32, blocked first: the output, valid after run().
    """

    def __init__(self, engine_file, threads, preprocess):
        """Loads the engine.

        Args:
            engine_file: path of the .onnx file.
            threads: of one inference.
            preprocess: the module serving.preprocess.

        Raises:
            ValueError: its inputs and outputs are not what a robot feeds and reads.
            Exception: ONNX Runtime cannot load it; the message says why.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(engine_file, options, providers=["CPUExecutionProvider"])
        inputs = [(i.name, tuple(i.shape), i.type) for i in self._session.get_inputs()]
        outputs = [(o.name, tuple(o.shape), o.type) for o in self._session.get_outputs()]
        expect("inputs", inputs, [(preprocess.INPUT_NAME, preprocess.INPUT_SHAPE, "tensor(float)")])
        expect("outputs", outputs, [(preprocess.OUTPUT_NAME, preprocess.OUTPUT_SHAPE, "tensor(float)")])
        self.name = "onnxruntime " + onnxruntime.__version__
        self.batch = np.zeros(preprocess.INPUT_SHAPE, np.float32)
        self.logits = np.full(preprocess.OUTPUT_SHAPE, np.nan, np.float32)
        self._binding = self._session.io_binding()
        self._binding.bind_input(preprocess.INPUT_NAME, "cpu", 0, np.float32, self.batch.shape, self.batch.ctypes.data)
        self._binding.bind_output(
            preprocess.OUTPUT_NAME, "cpu", 0, np.float32, self.logits.shape, self.logits.ctypes.data
        )

    def run(self):
        """From `batch` to `logits`."""
        self._session.run_with_iobinding(self._binding)


def expect(what, found, wanted):
    if found != wanted:
        raise ValueError("the engine's %s are %s; a robot has %s" % (what, found, wanted))
