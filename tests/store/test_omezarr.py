from store.contract import StoreContract


class TestZarr(StoreContract):
    suffix = ".zarr"
