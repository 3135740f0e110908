"""What a finished picture can prove: that its tiles are as they were made, and by whose word.

    origin     what kind of picture a run makes, for its metadata
    verify     any region against its manifest, in bounded memory
    signing    the manifest signed as C2PA, and a small preview that carries its own signature

The hashes and the manifest themselves are the store's, which writes them on the way (store.hashes, store.manifest).
"""
