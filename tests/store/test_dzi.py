from store.contract import StoreContract


class TestDzi(StoreContract):
    suffix = ".dzi"
