"""One picture, many processes: on this machine, or on any that share a folder. The result is that of one machine.

The truth is on disk: in the picture's store, and beside it, in the folders of a run. Whoever comes runs the same
command and finds there what is decided, what is done and who is at what; whoever dies leaves nothing that is half.

    place      where that is: a folder that all see, or
    bucket     one of an object store, of which each worker has copies of what it needs; objects.py speaks to it
    far        a picture in a bucket, for whoever looks at it, copies it or checks it
    board      small files that all see, each created once and whole
    claims     who is at what: a lease that has to be renewed, so that the work of the dead is taken over
    work       tasks in stages, and the worker that walks through them
    drawing    stages: the levels of a drawn picture, and the summaries between them
    decoding   stages: the shards of the picture, the pyramid above them, the seal
    files      which files a task reads and writes
    join       all of it, for one picture: what the commands call
    actors     the same on Ray: a worker on every core or GPU, started again when it dies
"""
