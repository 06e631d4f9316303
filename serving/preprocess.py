"""The one definition of what a network sees, used by training, by the checks and on the robot.

A frame is (224, 224, 3) uint8, RGB, rows from the top. The network's graph takes it as float32 in 0..255 with a batch
axis and does the rest itself (scaling, mean and deviation, channel order), so that nothing can differ between the
notebook and the floor: the Jetbot notebooks train on RGB and then feed the camera's BGR.

Python 3.6 syntax and numpy alone: the engine worker runs under JetPack's interpreter.
"""

import numpy as np

HEIGHT = 224
WIDTH = 224
FRAME_SHAPE = (HEIGHT, WIDTH, 3)  # uint8, RGB
FRAME_BYTES = HEIGHT * WIDTH * 3
INPUT_NAME = "frame"
INPUT_SHAPE = (1, HEIGHT, WIDTH, 3)  # float32 in 0..255, RGB
OUTPUT_NAME = "logits"
OUTPUT_SHAPE = (1, 2)  # float32, blocked first
CLASSES = ("blocked", "free")  # the notebooks' order: alphabetical, as ImageFolder sorts

# Named in every passport: an engine made for another definition is refused.
PREPROCESSING = "rgb-u8-nhwc-224-to-f32-v1"


def into(frame, batch):
    """Writes a frame into the network's input, allocating nothing.

    Args:
        frame: (224, 224, 3) uint8, RGB.
        batch: (1, 224, 224, 3) float32, overwritten with 0..255.

    Raises:
        ValueError: a shape or type is another.
    """
    if frame.shape != FRAME_SHAPE or frame.dtype != np.uint8:
        raise ValueError("a frame is %s uint8, this is %s %s" % (FRAME_SHAPE, frame.shape, frame.dtype))
    if batch.shape != INPUT_SHAPE or batch.dtype != np.float32:
        raise ValueError("the input is %s float32, this is %s %s" % (INPUT_SHAPE, batch.shape, batch.dtype))
    np.copyto(batch[0], frame)
