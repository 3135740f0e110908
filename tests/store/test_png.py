from store.contract import StoreContract


class TestPng(StoreContract):
    suffix = ".png"
    pyramidal = False
