"""The processes of a server: one that supervises, one with the engine, one or more that speak HTTP.

    supervisor --launch, then notices--> engine, HTTP processes     (JSON lines on standard input; their end ends both)
    supervisor <--reports-- engine, HTTP processes                  (JSON lines on standard output)
    HTTP process --requests, aborts, calls--> engine                (MessagePack over ZeroMQ)
    HTTP process <--token events, replies-- engine

An HTTP process tokenises and detokenises; the engine process knows token ids alone. When the engine dies, requests at
work fail, and a new one is started, with sockets of its own: nothing meant for the old one reaches it.
"""
