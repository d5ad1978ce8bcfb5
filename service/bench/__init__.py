"""A load generator for this service, and for any other that answers `POST /v1/generate` as it does.

    from service.bench.load import run_closed, run_open
    from service.bench.workloads import make_workload

    result = run_closed(url, make_workload("mixed", classes=10), clients=16, seconds=10, warm_up=2)
    print(result.image_steps_per_second, result.latency.p95)

It knows only HTTP: it imports neither the engine nor the application. Run it in a process of its own.
"""
