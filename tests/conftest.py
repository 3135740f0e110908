"""Before anything imports triton (diffusers does): without a GPU, kernels run in its interpreter."""

import os
from pathlib import Path

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
