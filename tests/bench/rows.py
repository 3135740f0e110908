"""Rows as `widefield bench` writes them, made up: numbers that a test can work out by hand."""

ABOUT = {
    "machine": {"cpu": "a CPU", "cores": 2, "memory_gib": 8.0, "kernel": "6.1", "load_average": [0.1, 0.1, 0.1]},
    "versions": {"python": "3.11.7", "numpy": "2.4"},
    "commit": "0123456789ab",
    "command": "bench",
}  # fmt: skip
SECONDS = {"untiled": 5.0, "tiled": 3.5, "ort f32": 1.75, "openvino f32": 1.0}  # of a megapixel


def decodes():
    """Four ways at three sizes: time grows with the picture, ours with half a second more; untiled fails at last."""
    rows = []
    for size in (1000, 2048, 4096):
        mpx = size**2 / 1e6
        for who, each in SECONDS.items():
            ours = "f32" in who
            row = {"section": "decode", "who": who, "size_px": size, "threads": 2, "limit": "8GiB", "about": ABOUT}
            if who == "untiled" and size == 4096:
                rows.append({**row, "failed": "MemoryError: <no room>"})
                continue
            seconds = each * mpx + (0.5 if ours else 0)
            row |= {
                "seconds": seconds,
                "cpu_seconds": 2 * seconds,
                "mpx_per_s": mpx / seconds,
                "mpx_per_cpu_s": mpx / seconds / 2,
            }
            row |= {"peak_mib": 600.0 if ours else 500 * mpx}
            if ours:
                row |= {"measure_seconds": 0.5, "stream_seconds": seconds - 0.5, "measure_flops": 10**9}
                row |= {"flops": int(150e9 * mpx), "flops_over_untiled": 1.2}
            rows.append(row)
    return rows


def everything():
    """Those, and rows of every other section."""
    split = [{"phase": p, "kind": k, "seconds": s, "calls": 3} for p, k, s in
             (("measure", "engine", 1.0), ("stream", "engine", 6.0), ("stream", "encode", 1.0))]  # fmt: skip
    parts = [("3x3, 16 ch", "torch", 40.0, 100.0), ("3x3, 16 ch", "ort", 40.0, 150.0), ("pixels", "numpy", 0.4, 3.0)]
    near = {"section": "quality", "size_px": 2048, "largest_difference": 2, "about": ABOUT}
    rest = [
        *({**near, "who": who, "psnr_db": 58.25 if "f32" in who else 50.5} for who in SECONDS if who != "untiled"),
        {"section": "split", "who": "ort f32", "size_px": 2048, "split": split},
        {"section": "ceiling", "name": "ceilings", "gflops": 200.0, "gflops_by": "torch", "gbps": 20.0, "threads": 2,
         "side": 2048},
        *({"section": "roofline", "part": part, "by": by, "flop_per_byte": i, "gflops": g, "of_ceiling": 0.5,
           "bound": "matmul"} for part, by, i, g in parts),
        {"section": "scaling", "name": "model", "by": "openvino f32", "fitted_px": [1000, 2048], "size_px": 4096,
         "cores_used": 1.9, "predicted_cpu_seconds": 34.0,
         "measured_cpu_seconds": 34.554, "off": -0.016, "within": True},
        *({"section": "projection", "by": "openvino f32", "size_px": 524288, "machines": n,
           "projected_seconds": 275000 // n, "projected_hours": 76.4 / n, "projected_machine_hours": 76.4,
           "written_gb": 101.0, "stored_mb_per_s": 0.37 * n, "planned_mib": 1670, "pflop": 41.2} for n in (1, 8, 64)),
    ]  # fmt: skip
    return [*decodes(), *({**row, "about": ABOUT} for row in rest)]
