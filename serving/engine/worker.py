"""The engine worker: a process that owns one engine and nothing else. Frames in through shared memory, logits out.

    python worker.py BACKEND_FILE ENGINE_FILE KEY THREADS CHANNEL_FD FRAME_FD

The client (client.py) runs this file by its path, under the interpreter that can import the engine's runtime. So:
Python 3.6 syntax, the standard library and numpy alone, and its two siblings are loaded by their place in the file
system, never by what is on the path.

The channel is a Unix socket that keeps messages whole (SOCK_SEQPACKET). The frame is (224, 224, 3) uint8 in memory
shared with the client, who writes it only while no request is under way. The worker ends when its client is gone.
"""

import importlib.util
import json
import mmap
import os
import select
import signal
import socket
import struct
import sys
import threading
import time

REQUEST = struct.Struct("<Q")  # number of the request, from 1
REPLY = struct.Struct("<QIffd")  # number, status, logit of blocked, logit of free, inference in ms; then UTF-8 text
MAX_TEXT_BYTES = 2000
MAX_REPLY_BYTES = REPLY.size + MAX_TEXT_BYTES

OK, READY, FAILED, NO_RUNTIME, BAD_OUTPUT, WRONG_KEY = 0, 1, 2, 3, 4, 5  # status of a reply
WARM_UP_RUNS = 3


def load_module(path):
    """Imports one file by its place, whatever is on the path."""
    name = os.path.splitext(os.path.basename(path))[0]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def one_line(problem):
    return " ".join(("%s: %s" % (type(problem).__name__, problem)).split())


def reply(channel, number, status, logits=(0.0, 0.0), run_ms=0.0, text=""):
    message = REPLY.pack(number, status, logits[0], logits[1], run_ms)
    channel.send(message + text.encode("utf-8")[:MAX_TEXT_BYTES])


def misfit(backend_module, key):
    """Why an engine built for `key` must not be loaded on this machine; empty when it may be.

    Args:
        backend_module: its machine(), where it has one, gives what counts here, such as `compute_capability`.
        key: the same of the machine that built it; what is missing or empty fits any machine.
    """
    here = backend_module.machine() if hasattr(backend_module, "machine") and any(key.values()) else {}
    return "; ".join(
        "the engine was built for %s %s, this robot has %s" % (name.replace("_", " "), key[name], here[name])
        for name in sorted(here)
        if key.get(name) and key[name] != here[name]
    )


def serve(channel, frame, backend, preprocess):
    """Answers requests until the client closes the channel.

    Args:
        channel: the connected socket.
        frame: (224, 224, 3) uint8 in shared memory.
        backend: has `batch` (1, 224, 224, 3) float32, `logits` (1, 2) float32 and `run()`.
        preprocess: the module serving.preprocess.
    """
    request = bytearray(REQUEST.size)
    while channel.recv_into(request) == REQUEST.size:
        (number,) = REQUEST.unpack(request)
        started = time.perf_counter()
        preprocess.into(frame, backend.batch)
        backend.run()
        run_ms = (time.perf_counter() - started) * 1e3
        logits = backend.logits
        if getattr(logits, "shape", None) != preprocess.OUTPUT_SHAPE:
            text = "an output of shape %s instead of %s" % (getattr(logits, "shape", None), preprocess.OUTPUT_SHAPE)
            reply(channel, number, BAD_OUTPUT, text=text)
        else:
            reply(channel, number, OK, logits[0], run_ms)


def end_with_client(channel):
    """Leaves at once when the client is gone, also from within an inference that hangs."""

    def wait():
        watcher = select.poll()
        watcher.register(channel.fileno(), 0)  # the end of the other side is reported unasked
        watcher.poll()
        os._exit(0)

    thread = threading.Thread(target=wait)
    thread.daemon = True
    thread.start()


def first_to_go():
    """Short of memory, the kernel is to end this process, which is started again, and not the daemon or its guard."""
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")


def main(arguments):
    """Loads and warms the engine, says READY, serves. Returns the exit code."""
    backend_file, engine_file, key, threads, channel_fd, frame_fd = arguments
    del sys.path[0]  # the folder of this file: its modules are not for import by name
    os.dup2(2, 1)  # what a library prints goes to the log
    for ignored in (signal.SIGINT, signal.SIGTERM):  # they go to the whole group; the client decides when to end
        signal.signal(ignored, signal.SIG_IGN)
    first_to_go()
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=int(channel_fd))
    end_with_client(channel)
    try:
        import numpy as np  # here, where it can be told when this interpreter has none

        backend_module = load_module(backend_file)
        wrong = misfit(backend_module, json.loads(key))
    except ImportError as problem:
        reply(channel, 0, NO_RUNTIME, text=one_line(problem))
        return 1
    if wrong:
        reply(channel, 0, WRONG_KEY, text=wrong)
        return 1
    backend = None
    try:
        serving_folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        preprocess = load_module(os.path.join(serving_folder, "preprocess.py"))
        shared = mmap.mmap(int(frame_fd), preprocess.FRAME_BYTES, prot=mmap.PROT_READ)
        frame = np.frombuffer(shared, dtype=np.uint8).reshape(preprocess.FRAME_SHAPE)
        backend = backend_module.Backend(engine_file, int(threads), preprocess)
        for _ in range(WARM_UP_RUNS):
            preprocess.into(frame, backend.batch)
            backend.run()
        reply(channel, 0, READY, text=backend.name)
        serve(channel, frame, backend, preprocess)
    except ImportError as problem:  # a runtime that is imported when it is needed; the engine is not to blame
        reply(channel, 0, NO_RUNTIME, text=one_line(problem))
        return 1
    except Exception as problem:  # whatever it is, the client tells it to people
        reply(channel, 0, FAILED, text=one_line(problem))
        return 1
    finally:
        close = getattr(backend, "close", None)
        if close:
            close()
    return 0


if __name__ == "__main__":
    # No clean-up by the interpreter: a thread waits in poll(), and a runtime's own exit may hang.
    os._exit(main(sys.argv[1:]))
