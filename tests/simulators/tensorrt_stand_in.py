"""Stand-ins of TensorRT's and pycuda's Python modules, where there is no GPU. Not TensorRT: they only keep its rules.

`tensorrt_module(version, ...)` has the names of one version: 8.2 has bindings, 8.5 bindings and named tensors, 10 named
tensors alone; what a version lacks is an AttributeError here too (test_tensorrt_backend.py compares 10's names with
TensorRT-RTX's). `Gpu` is pycuda.driver and the GPU behind it: it records every call, copies when a stream is
synchronised and not before, and refuses work without a current context, from memory that is not pinned, or after it was
freed. An engine is JSON; its network answers as tests.test_robot_parts.write_network does.
"""

import enum
import json
import sys
import types
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np

FLOAT_ENDS = [["frame", True, [1, 224, 224, 3], "FLOAT"], ["logits", False, [1, 2], "FLOAT"]]
MAGIC = "ENGINE"


def engine_file(version: str = "8.2.1.8", capability: str = "5.3", ends: Any = None, shift: float = 0.0) -> bytes:
    """What the stand-in of a builder makes, and what the stand-in of a runtime takes."""
    body = {"version": version, "capability": capability, "ends": ends or FLOAT_ENDS, "shift": shift}
    return (MAGIC + json.dumps(body)).encode()


class Gpu(types.ModuleType):
    """pycuda.driver. `calls` is what was called, in order."""

    class Error(Exception):
        pass

    def __init__(self, capability: str = "5.3", broken: str = "", count: int = 1) -> None:
        super().__init__("pycuda.driver")
        self.calls: List[str] = []
        self.capability, self.broken, self.count = capability, broken, count
        self.stack: List[_Context] = []  # contexts that are current
        self.memory: Dict[int, Optional[np.ndarray]] = {}  # address -> what lies there; None: freed
        self.pinned: List[np.ndarray] = []
        self.queue: List[Callable[[], None]] = []
        gpu = self

        class Device:
            def __init__(self, number: int) -> None:
                assert number == 0

            @staticmethod
            def count() -> int:
                return gpu.count

            def compute_capability(self) -> Tuple[int, ...]:
                return tuple(int(part) for part in gpu.capability.split("."))

            def make_context(self) -> "_Context":
                gpu.calls.append("make_context")
                return _Context(gpu)

        self.Device = Device

    def init(self) -> None:
        self.calls.append("init")
        if self.broken:
            raise Gpu.Error(self.broken)

    def pagelocked_empty(self, shape: Any, dtype: Any) -> np.ndarray:
        self.must_be_current("pagelocked_empty")
        made = np.empty(shape, dtype)
        self.pinned.append(made)
        return made

    def mem_alloc(self, size: int) -> "_Memory":
        self.must_be_current("mem_alloc")
        return _Memory(self, size)

    def Stream(self) -> "_Stream":
        self.must_be_current("Stream")
        return _Stream(self)

    def memcpy_htod_async(self, to: "_Memory", source: np.ndarray, stream: "_Stream") -> None:
        self.must_be_current("memcpy_htod_async")
        assert any(source is one for one in self.pinned), "the host's memory is not pinned"
        self.queue.append(lambda: self.at(int(to)).__setitem__(slice(None), source.reshape(-1)))

    def memcpy_dtoh_async(self, to: np.ndarray, source: "_Memory", stream: "_Stream") -> None:
        self.must_be_current("memcpy_dtoh_async")
        assert any(to is one for one in self.pinned), "the host's memory is not pinned"
        self.queue.append(lambda: to.reshape(-1).__setitem__(slice(None), self.at(int(source))))

    def at(self, address: int) -> np.ndarray:
        found = self.memory[address]
        assert found is not None, "this memory was freed"
        return found

    def must_be_current(self, call: str) -> None:
        self.calls.append(call)
        assert self.stack, f"{call} without a current context"


class _Context:
    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        gpu.stack.append(self)

    def pop(self) -> None:
        self._gpu.must_be_current("context.pop")
        assert self._gpu.stack.pop() is self

    def detach(self) -> None:
        self._gpu.calls.append("context.detach")


class _Memory:
    def __init__(self, gpu: Gpu, size: int) -> None:
        self._gpu, self._address = gpu, 4096 + 1024 * len(gpu.memory)
        gpu.memory[self._address] = np.zeros(size // 4, np.float32)

    def __int__(self) -> int:
        return self._address

    def free(self) -> None:
        self._gpu.must_be_current("free")
        self._gpu.memory[self._address] = None


class _Stream:
    def __init__(self, gpu: Gpu) -> None:
        self._gpu, self.handle = gpu, 77

    def synchronize(self) -> None:
        self._gpu.must_be_current("synchronize")
        work, self._gpu.queue[:] = list(self._gpu.queue), []
        for step in work:
            step()


class DataType(enum.Enum):
    FLOAT, HALF, INT8 = 0, 1, 2


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = 0, 1, 2


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity: Severity, text: str) -> None:
        raise NotImplementedError


def _fail(logger: Any, *texts: str) -> None:
    for text in texts:
        logger.log(ILogger.Severity.ERROR, text)


def tensorrt_module(
    version: str,
    gpu: Gpu,
    *,
    bindings: bool,
    named: bool,
    pools: bool,
    name: str = "tensorrt",
    takes: bool = True,
    fast_fp16: bool = True,
    fast_int8: bool = False,
) -> types.ModuleType:
    """One version of TensorRT.

    Args:
        gpu: that its engines run on.
        bindings: it has bindings and execute_async_v2.
        named: it has named tensors and execute_async_v3.
        pools: it has set_memory_pool_limit, and not max_workspace_size.
        takes: False: executing gives False.
    """
    trt = types.ModuleType(name)

    class Context:
        def __init__(self, engine: Any) -> None:
            self._engine, self._places = engine, {}
            gpu.calls.append("create_execution_context")

        def _enqueue(self, places: Dict[str, int], stream: int, call: str) -> bool:
            gpu.must_be_current(call)
            assert stream == 77
            if not takes:
                _fail(self._engine.logger, "Error Code 1: Cuda Runtime (an illegal memory access was encountered)")
                return False
            source, to = places["frame"], places["logits"]
            gpu.queue.append(lambda: gpu.at(to).__setitem__(slice(None), self._logits(float(gpu.at(source).mean()))))
            return True

        def _logits(self, brightness: float) -> List[float]:
            shift = self._engine.body["shift"]
            return [8 + shift - brightness / 16, brightness / 16 - 8 - shift]

        if bindings:

            def execute_async_v2(self, places: List[int], stream: int) -> bool:
                names = [end[0] for end in self._engine.body["ends"]]
                return self._enqueue(dict(zip(names, places, strict=True)), stream, "execute_async_v2")

        if named:

            def set_tensor_address(self, end: str, place: int) -> bool:
                self._places[end] = place
                return True

            def execute_async_v3(self, stream: int) -> bool:
                return self._enqueue(self._places, stream, "execute_async_v3")

    class Engine:
        def __init__(self, body: Any, logger: Any) -> None:
            self.body, self.logger = body, logger

        def create_execution_context(self) -> Optional[Context]:
            return Context(self) if self.body.get("fits", True) else None

        def _end(self, which: Any) -> List[Any]:
            ends: List[List[Any]] = self.body["ends"]
            return ends[which] if isinstance(which, int) else next(end for end in ends if end[0] == which)

        if bindings:
            num_bindings = property(lambda self: len(self.body["ends"]))

            def get_binding_name(self, number: int) -> str:
                return str(self._end(number)[0])

            def binding_is_input(self, number: int) -> bool:
                return bool(self._end(number)[1])

            def get_binding_shape(self, number: int) -> List[int]:
                return list(self._end(number)[2])

            def get_binding_dtype(self, number: int) -> DataType:
                return DataType[self._end(number)[3]]

        if named:
            num_io_tensors = property(lambda self: len(self.body["ends"]))

            def get_tensor_name(self, number: int) -> str:
                return str(self._end(number)[0])

            def get_tensor_mode(self, end: str) -> TensorIOMode:
                return TensorIOMode.INPUT if self._end(end)[1] else TensorIOMode.OUTPUT

            def get_tensor_shape(self, end: str) -> List[int]:
                return list(self._end(end)[2])

            def get_tensor_dtype(self, end: str) -> DataType:
                return DataType[self._end(end)[3]]

    class Runtime:
        def __init__(self, logger: Any) -> None:
            gpu.must_be_current("Runtime")
            self._logger = logger

        def deserialize_cuda_engine(self, content: bytes) -> Optional[Engine]:
            # The words are TensorRT's, from its issues 1384, 2041 and 2195 and tensorrt_demos 335.
            gpu.must_be_current("deserialize_cuda_engine")
            text = content.decode("utf-8", "replace")
            if not text.startswith(MAGIC):
                _fail(
                    self._logger, "Serialization assertion magicTagRead == kMAGIC_TAG failed.Magic tag does not match"
                )
                return None
            try:
                body = json.loads(text[len(MAGIC) :])
            except ValueError:
                _fail(self._logger, "Error Code 4: Internal Error (Engine deserialization failed.)")
                return None
            if body["version"] != version:
                _fail(
                    self._logger,
                    "Serialization assertion stdVersionRead == serializationVersion failed.Version tag does not match. "
                    "Note: Current Version: 213, Serialized Engine Version: 205",
                )
                return None
            if body["capability"] != gpu.capability:
                found = f"expecting compute {gpu.capability} got compute {body['capability']}, please rebuild."
                _fail(self._logger, f"The engine plan file is generated on an incompatible device, {found}")
                return None
            return Engine(body, self._logger)

    class Config:
        def __init__(self) -> None:
            self.flags: List[str] = []
            self.workspace_bytes = 0

        def set_flag(self, flag: Any) -> None:
            self.flags.append(flag.name)

        if pools:

            def set_memory_pool_limit(self, pool: Any, size: int) -> None:
                self.workspace_bytes = size
        else:
            max_workspace_size = property(
                lambda self: self.workspace_bytes, lambda self, size: setattr(self, "workspace_bytes", size)
            )

    class Network:
        num_outputs = 0
        content = b""

    class Builder:
        platform_has_fast_fp16 = fast_fp16
        platform_has_fast_int8 = fast_int8

        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def create_network(self, flags: int) -> Network:
            assert flags == (1 if hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH") else 0)
            return Network()

        def create_builder_config(self) -> Config:
            return Config()

        def build_serialized_network(self, network: Network, config: Config) -> Optional[bytes]:
            trt.built_with = config  # type: ignore[attr-defined]  # for the tests
            if b"hungry" in network.content:
                _fail(self._logger, "Error Code 2: OutOfMemory (no further information)")
                return None
            return engine_file(version, gpu.capability)

    class OnnxParser:
        def __init__(self, network: Network, logger: Any) -> None:
            self._network = network

        def parse(self, content: bytes) -> bool:
            self._network.content = content
            self._network.num_outputs = int(content != b"")
            return b"no network" not in content

        num_errors = 1

        def get_error(self, number: int) -> Any:
            return types.SimpleNamespace(desc=lambda: "Assertion failed: No importer registered for op: Einsum")

    flags = {"FP16": 0, "INT8": 1} if name == "tensorrt" else {"TF32": 0}
    explicit = {"EXPLICIT_BATCH": 0} if bindings else {"STRONGLY_TYPED": 1}
    trt.__dict__.update(
        __version__=version,
        Builder=Builder,
        BuilderFlag=enum.Enum("BuilderFlag", flags),
        DataType=DataType,
        ILogger=ILogger,
        MemoryPoolType=enum.Enum("MemoryPoolType", {"WORKSPACE": 0}),
        NetworkDefinitionCreationFlag=enum.IntEnum("NetworkDefinitionCreationFlag", explicit),
        OnnxParser=OnnxParser,
        Runtime=Runtime,
        TensorIOMode=TensorIOMode,
        engine_class=Engine,
        context_class=Context,
    )
    return trt


VERSIONS: Dict[str, Dict[str, bool]] = {
    "8.2.1.8": {"bindings": True, "named": False, "pools": False},
    "8.5.2.2": {"bindings": True, "named": True, "pools": True},
    "10.3.0": {"bindings": False, "named": True, "pools": True},
}


def install(version: str, gpu: Gpu, **changes: Any) -> types.ModuleType:
    """Puts the stand-ins in the place of `tensorrt` and `pycuda.driver` in this process."""
    trt = tensorrt_module(version, gpu, **{**VERSIONS[version], **changes})
    package = types.ModuleType("pycuda")
    package.driver = gpu  # type: ignore[attr-defined]
    sys.modules.update({trt.__name__: trt, "pycuda": package, "pycuda.driver": gpu})
    return trt
