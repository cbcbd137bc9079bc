"""The code that runs the book *A Survey of Large Language Models, run*: thin, readable, tested.

Read the files from the ground up: `corpus` and `tokenizers`, then `language_model`, then one file per stage. This
file imports none of them, so that `import lmsurvey_code.ngram` needs NumPy alone.
"""

import os
import shutil

__version__ = "0.1.0"


def about() -> str:
    """One line for the first cell of a notebook: version, device, expected time.

    The device is read without importing PyTorch, which the chapters on counting do not need.
    """
    device = "a GPU" if shutil.which("nvidia-smi") and os.environ.get("CUDA_VISIBLE_DEVICES") != "" else "the CPU"
    return (
        f"lmsurvey-code {__version__} on {device}. A chapter takes at most 150 s on two CPU cores; "
        "the line under its title gives its own time."
    )
