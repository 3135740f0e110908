"""How much of a GPU a run may have, where nobody has said: what is free now, less a tenth."""

from __future__ import annotations

import importlib.util

from widefield.errors import MissingBackend

SHARE = 0.9


def free_nbytes(number: int) -> int:
    """Nine tenths of what is free on a GPU, asked of cupy, or of torch. MissingBackend where there is neither."""
    if importlib.util.find_spec("cupy") is not None:
        from widefield.device.gpu import CupyGpu

        return int(CupyGpu(number).free_nbytes * SHARE)
    if importlib.util.find_spec("torch") is not None:
        import torch

        from widefield.engine.torch_engine import find_device

        find_device(f"cuda:{number}")
        kept = torch.cuda.memory_reserved(number) - torch.cuda.memory_allocated(number)
        return int((torch.cuda.mem_get_info(number)[0] + kept) * SHARE)
    raise MissingBackend(
        f"nobody can say what cuda:{number} has free: cupy and torch are not installed; pip install 'widefield[gpu]', "
        "or plan with --device-memory"
    )
