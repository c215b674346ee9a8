"""gRPC as its own library speaks it: `serve KEY CERTIFICATE` prints its port, `ask ADDRESS NAME CA` prints what came as JSON."""

import json
import sys
import time
from concurrent import futures

import grpc


def serve(key, certificate):
    def unary(request, context):
        context.set_trailing_metadata((("x-length", str(len(request))),))
        return request[::-1]

    def refuse(request, context):
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not like this")

    def converse(requests, context):
        # Each answer before the next question: full duplex, or nobody gets any further.
        for request in requests:
            yield b"heard " + request

    def count(request, context):
        for n in range(int(request)):
            yield b"%d " % n + b"x" * 20000

    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Refuse": grpc.unary_unary_rpc_method_handler(refuse),
        "Converse": grpc.stream_stream_rpc_method_handler(converse),
        "Count": grpc.unary_stream_rpc_method_handler(count),
    }
    server = grpc.server(futures.ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Peer", handlers),))
    with open(key, "rb") as k, open(certificate, "rb") as c:
        credentials = grpc.ssl_server_credentials([(k.read(), c.read())])
    print(server.add_secure_port("127.0.0.1:0", credentials), flush=True)
    server.start()
    server.wait_for_termination()


def ask(address, name, ca):
    with open(ca, "rb") as f:
        credentials = grpc.ssl_channel_credentials(f.read())
    options = (("grpc.ssl_target_name_override", name), ("grpc.default_authority", name))
    out = {}
    with grpc.secure_channel(address, credentials, options) as channel:
        response, call = channel.unary_unary("/test.Peer/Unary").with_call(b"hello" * 100000, timeout=20)
        out["unary"] = response == (b"hello" * 100000)[::-1]
        out["trailer"] = dict(call.trailing_metadata()).get("x-length")
        try:
            channel.unary_unary("/test.Peer/Refuse")(b"x", timeout=20)
        except grpc.RpcError as e:
            out["refused"] = [e.code().name, e.details()]
        try:
            channel.unary_unary("/test.Peer/Nosuch")(b"x", timeout=20)
        except grpc.RpcError as e:
            out["unknown"] = e.code().name
        heard = []

        def questions():
            for n in range(5):
                yield b"%d" % n
                while len(heard) <= n:
                    time.sleep(0.01)

        for answer in channel.stream_stream("/test.Peer/Converse")(questions(), timeout=20):
            heard.append(answer.decode())
        out["heard"] = heard
        out["counted"] = sum(len(a) for a in channel.unary_stream("/test.Peer/Count")(b"100", timeout=20))
    print(json.dumps(out))


{"serve": serve, "ask": ask}[sys.argv[1]](*sys.argv[2:])
