"""The store's bench runs, untimed, as a test: what it would time is right, and it says what it should."""

from widefield_bench.store import StoreCase, bench_store, check, cut, dead_leaves


def test_the_bench_checks_and_then_measures(tmp_path):
    tiles = cut(dead_leaves(768), 8)
    check(tiles, tmp_path)
    result = bench_store(StoreCase(side_px=2048), tiles, tmp_path)
    assert result["mpx_per_s"] > 0 and result["encoder_mpx_per_s"] > 0
    assert 0.2 < result["bits_per_px"] < 12
    assert result["rss_above_idle_mib"] < 64
