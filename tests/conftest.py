"""Before anything imports triton (diffusers does): without a GPU, kernels run in its interpreter. And hypothesis has no
deadline for one example: pytest has one for a test, and a busy machine is no fault of the code."""

import os
from pathlib import Path

from hypothesis import settings

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("house", deadline=None)
settings.load_profile("house")
