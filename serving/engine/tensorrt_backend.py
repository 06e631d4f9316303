"""Runs an engine with TensorRT 8.0 to 10, or TensorRT-RTX, on the first GPU, in buffers that are made once.

Loaded by the engine worker alone. Python 3.6 syntax; numpy, tensorrt and pycuda, imported when they are needed. What
differs between the versions is found by looking at what is there: bindings and execute_async_v2 (8.x), or named tensors
and execute_async_v3 (8.5 and later). Not yet run on a Jetson: docs/jetson.md says what was.
"""

import numpy as np

DEVICE = 0


class NoRuntime(ImportError):
    """This interpreter or this machine cannot run any engine: the engine is not to blame."""


class Backend(object):
    """One loaded engine, and the CUDA context that it lives in.

    The context is made here, current on this thread until close(), and nobody else's: pycuda.autoinit would tie it to
    the import and to the interpreter's exit.

    Attributes:
        name: the runtime and its version.
        batch: (1, 224, 224, 3) float32 in 0..255, RGB, in pinned memory: the input, written before run().
        logits: (1, 2) float32, blocked first, in pinned memory: the output, valid after run().
    """

    def __init__(self, engine_file, threads, preprocess):
        """Loads the engine.

        Args:
            engine_file: path of the serialised engine.
            threads: of no meaning here; the GPU does the work.
            preprocess: the module serving.preprocess.

        Raises:
            NoRuntime: no TensorRT, no pycuda, no driver, no GPU.
            ValueError: it is for another TensorRT or another GPU, not whole, no engine, or not this network's.
        """
        trt, self._cuda = runtime()
        self.name = "%s %s" % (product(trt), trt.__version__)
        self._errors = []
        self._freed = []  # closed in the reverse order of their making
        self._context = self._cuda.Device(DEVICE).make_context()  # current from here on
        try:
            self._load(trt, engine_file, preprocess)
        except BaseException:
            self.close()
            raise

    def run(self):
        """From `batch` to `logits`; returns when the GPU is done.

        Raises:
            RuntimeError: TensorRT did not take the work.
            Exception: CUDA failed; pycuda's own error says how.
        """
        del self._errors[:]
        self._cuda.memcpy_htod_async(self._device_batch, self.batch, self._stream)
        if not self._execute():
            raise RuntimeError("TensorRT did not run the engine: %s" % "; ".join(self._errors[-2:]))
        self._cuda.memcpy_dtoh_async(self.logits, self._device_logits, self._stream)
        self._stream.synchronize()

    def close(self):
        """Frees what is on the GPU, and pops the context. May be called twice."""
        if self._context is None:
            return
        for name in ("_execute", "_execution", "_engine", "_runtime"):
            self.__dict__.pop(name, None)
        while self._freed:
            self._freed.pop().free()
        self.__dict__.pop("_stream", None)
        context, self._context = self._context, None
        context.pop()
        context.detach()

    def _load(self, trt, engine_file, preprocess):
        with open(engine_file, "rb") as file:
            content = file.read()
        self._logger = logger_of(trt, self._errors)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(content) if content else None
        if self._engine is None:
            raise ValueError(explain(self._errors, len(content), self.name))
        expect(self._engine, trt, preprocess)
        self._execution = self._engine.create_execution_context()
        if self._execution is None:
            raise ValueError("no memory on the GPU for this engine: %s" % "; ".join(self._errors[-2:]))
        self.batch = self._pinned(preprocess.INPUT_SHAPE)
        self.logits = self._pinned(preprocess.OUTPUT_SHAPE)
        self.batch[...] = 0
        self.logits[...] = np.nan  # no answer may be taken for one before there is one
        self._device_batch = self._on_device(self.batch.nbytes)
        self._device_logits = self._on_device(self.logits.nbytes)
        self._stream = self._cuda.Stream()
        self._bind(preprocess)

    def _pinned(self, shape):
        """Memory of the host that the GPU reads and writes itself."""
        return self._cuda.pagelocked_empty(shape, np.float32)

    def _on_device(self, size):
        memory = self._cuda.mem_alloc(size)
        self._freed.append(memory)
        return memory

    def _bind(self, preprocess):
        execution, stream = self._execution, self._stream
        places = {preprocess.INPUT_NAME: int(self._device_batch), preprocess.OUTPUT_NAME: int(self._device_logits)}
        if hasattr(execution, "execute_async_v3"):
            for name in sorted(places):
                execution.set_tensor_address(name, places[name])
            self._execute = lambda: execution.execute_async_v3(stream.handle)
        else:
            bindings = [places[name] for name, _, _, _ in ends_of(self._engine)]
            self._execute = lambda: execution.execute_async_v2(bindings, stream.handle)


def runtime():
    """The modules tensorrt (or tensorrt_rtx) and pycuda.driver, with a driver and a GPU behind them.

    Raises:
        NoRuntime: one of them is missing; with the reason.
    """
    try:
        import tensorrt as trt
    except ImportError as problem:
        try:
            import tensorrt_rtx as trt
        except ImportError:
            raise NoRuntime("no TensorRT: %s" % problem) from None
    try:
        import pycuda.driver as cuda
    except ImportError as problem:
        raise NoRuntime("no pycuda, or no NVIDIA driver for it: %s" % problem) from None
    try:
        cuda.init()
        count = cuda.Device.count()
    except cuda.Error as problem:
        raise NoRuntime("no NVIDIA driver that works: %s" % problem) from None
    if count <= DEVICE:
        raise NoRuntime("the NVIDIA driver finds no GPU")
    return trt, cuda


def machine():
    """What an engine must have been built for to run here: `runtime_version`, `compute_capability` such as 5.3.

    Raises:
        NoRuntime: no engine runs here.
    """
    trt, cuda = runtime()
    capability = "%d.%d" % tuple(cuda.Device(DEVICE).compute_capability())
    return {"runtime_version": trt.__version__, "compute_capability": capability}


def product(trt):
    return "TensorRT-RTX" if trt.__name__ == "tensorrt_rtx" else "TensorRT"


def logger_of(trt, errors):
    """A logger that keeps what TensorRT says went wrong in the list `errors`."""

    class Logger(trt.ILogger):  # type: ignore[name-defined,misc]
        def __init__(self):
            trt.ILogger.__init__(self)

        def log(self, severity, text):
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                errors.append(" ".join(text.split()))

    return Logger()


def explain(errors, size, name):
    """Why an engine of so many bytes was not taken, in words for people; TensorRT's own follow."""
    said = "; ".join(errors[-2:]) or "TensorRT says nothing"
    about = " ".join(errors).lower()
    if size == 0:
        return "the engine is an empty file"
    if "expecting compute" in about or "incompatible device" in about:
        what = "the engine was built for a GPU of another compute capability than this one"
    elif "version" in about and ("does not match" in about or "not compatible" in about or "incompatible" in about):
        what = "the engine was built for another version of TensorRT than %s, or is no engine" % name
    elif "magic" in about:
        what = "this is no engine of TensorRT"
    elif "blobsize" in about or "buffersize" in about:
        what = "the engine of %d bytes is not whole" % size
    elif "driver version is insufficient" in about or "no cuda-capable" in about:
        what = "there is no NVIDIA driver that works"
    else:
        what = "the engine of %d bytes is not whole, or does not fit into memory" % size
    return "%s: %s" % (what, said)


def ends_of(engine):
    """Inputs and outputs of an engine, in its own order: [(name, whether it is an input, shape, type)]."""
    if hasattr(engine, "num_io_tensors"):
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        return [
            (
                n,
                engine.get_tensor_mode(n).name == "INPUT",
                engine.get_tensor_shape(n),
                engine.get_tensor_dtype(n),
            )
            for n in names
        ]
    return [
        (
            engine.get_binding_name(number),
            engine.binding_is_input(number),
            engine.get_binding_shape(number),
            engine.get_binding_dtype(number),
        )
        for number in range(engine.num_bindings)
    ]


def expect(engine, trt, preprocess):
    """Refuses an engine that is not fed and read as serving/preprocess.py says."""
    float32 = trt.DataType.FLOAT
    found = sorted((name, bool(fed), tuple(shape), kind == float32) for name, fed, shape, kind in ends_of(engine))
    wanted = [
        (preprocess.INPUT_NAME, True, preprocess.INPUT_SHAPE, True),
        (preprocess.OUTPUT_NAME, False, preprocess.OUTPUT_SHAPE, True),
    ]
    if found != sorted(wanted):
        raise ValueError("the engine has %s; a robot has %s" % (described(found), described(sorted(wanted))))


def described(ends):
    return ", ".join(
        "%s `%s` %s%s" % ("input" if fed else "output", name, shape, " float32" if is_float else " of another type")
        for name, fed, shape, is_float in ends
    )
