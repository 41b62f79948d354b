"""`cetnet serve`: an export behind the Open Inference Protocol, HTTP and gRPC, on KServe's Python server."""
