"""For tests of programs that use Cutline, and for its own: parts that do as they are told, and virtual time.

`agent` answers a script behind the API, `worker` says one over real gRPC, `drafter` drafts one, `fleet` is workers
without connections.
`together` runs an agent and a worker in one process; `raw_http` speaks to the API byte by byte. `models` writes models
of published shapes with random weights, and holds a split model against transformers' own.
`docs/how-to/testing.md` has examples.
"""
