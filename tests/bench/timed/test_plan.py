"""How long planning the largest picture takes."""

from widefield.buffers import PlanRequest
from widefield.plan import make_plan


def test_plan(benchmark, model):
    request = PlanRequest(8 << 30, cores=2, backend="ort")
    plan = benchmark(make_plan, model.bundle, model.bundle.decoder, 65536, 65536, request)
    assert plan.as_dict()["size_px"] == [524288, 524288]
    assert plan.peak_nbytes() <= 8 << 30
