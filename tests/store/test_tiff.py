from store.contract import StoreContract


class TestTiff(StoreContract):
    suffix = ".tif"


class TestTiffZstd(StoreContract):
    suffix = ".tiff"

    def spec(self, *args, codec="zstd", **kwargs):
        return super().spec(*args, codec=codec, **kwargs)
