"""A collector of traces: takes them over OTLP/HTTP as the official messages, and prints each span as a line of JSON, with its
resource. Answers as its argument says: well, partial (it refuses a span of each batch), busy (429) or silent."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service

MANNER = sys.argv[1]


def plain(attributes):
    return {one.key: one.value.string_value if one.value.HasField("string_value") else one.value.int_value for one in attributes}


class Collector(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if MANNER == "silent":
            threading.Event().wait()
        if MANNER == "busy":
            return self.answer(429, b"", {"retry-after": "1"})
        assert self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf", self.path
        for of in service.ExportTraceServiceRequest.FromString(body).resource_spans:
            for span in (span for scope in of.scope_spans for span in scope.spans):
                line = {"name": span.name, "trace": span.trace_id.hex(), "id": span.span_id.hex(), "parent": span.parent_span_id.hex()}
                line |= {"kind": span.kind, "began": span.start_time_unix_nano, "ended": span.end_time_unix_nano}
                line |= {"is_error": span.status.code == 2, "attributes": plain(span.attributes)}
                line["events"] = [[event.name, event.time_unix_nano, plain(event.attributes)] for event in span.events]
                line["links"] = [[link.trace_id.hex(), link.span_id.hex()] for link in span.links]
                line |= {"resource": plain(of.resource.attributes), "header": self.headers.get("x-key")}
                print(json.dumps(line), flush=True)
        response = service.ExportTraceServiceResponse()
        if MANNER == "partial":
            response.partial_success.rejected_spans = 1
        self.answer(200, response.SerializeToString(), {"content-type": "application/x-protobuf"})

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in (headers | {"content-length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
server.daemon_threads = True
print(server.server_port, flush=True)
server.serve_forever()
