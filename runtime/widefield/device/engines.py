"""The engines of a component's graphs on a GPU, for tiles that come from many threads and of many levels."""

from __future__ import annotations

import threading
from typing import Any

from widefield.coder_engines import CoderEngines
from widefield.device.slots import Slots


class DeviceEngines(CoderEngines):
    """With what all of the tiles go through the GPU in, which is taken when the first coder opens."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._slots: Slots | None = None
        self._taking = threading.Lock()

    def slots(self) -> Slots:
        """For values. MissingBackend without a GPU."""
        from widefield.device.gpu import CupyGpu
        from widefield.device.ops import CupyOps

        with self._taking:
            if self._slots is None:
                gpu = CupyGpu(self.options.gpu)
                ops = CupyOps(gpu, self.options.precision)
                self._slots = Slots(gpu, ops, self.component, self.tile, self.batch, values=True)
            return self._slots

    def close(self) -> None:
        with self._taking:
            self._slots = None
        super().close()
