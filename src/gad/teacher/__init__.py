"""Buying words from an API: every reply is paid for once, kept for ever, at the speed the provider allows.

The seam, for the collector and for judges alike (`from gad.teacher.caller import ApiCaller`, records from
`gad.teacher.requests`); nothing here imports torch, and `openai` is imported when the first request is sent:

    class ApiCaller:                                     # a context manager: owns `folder` while it is open
        def __init__(
            self,
            config: ApiConfig,                           # gad.config.teacher: endpoint, model, sampling, limits, money
            folder: Path,                                # its ledger lives in `folder/ledger.jsonl`
            *,
            stop: Callable[[], bool] = never,            # true: send nothing more, wait for what is under way, return
            watch: Callable[[Snapshot], None] = ignore,  # called a few times a second while requests are under way
            exchange: Exchange | None = None,            # the transport; None is the official `openai` client
        ) -> None: ...
        def outcomes(self, requests: Iterable[ApiRequest], *, retry_failed: bool = False) -> Iterator[Outcome]: ...
        @property
        def bill(self) -> Bill: ...                      # spent, held by requests under way, possibly paid (USD)

    ApiRequest(id, messages, sample=0, max_tokens=None, top_logprobs=None)   # `max_tokens` overrides the config's
    Outcome = Reply | GivenUp
    Reply(key, id, sample, text, model, finish_reason, usage, cost_usd, ..., reasoning, logprobs, known)
    GivenUp(key, id, sample, reason, message, known)

- Requests are taken lazily; outcomes come as they arrive, in any order, one for each request that was settled.
- A request whose reply is in the ledger is not sent: its outcome comes from the ledger, marked `known`. So is one that
  was given up, unless `retry_failed`. The key is a hash of model, messages, sampling and sample index; two requests
  with one key are one purchase.
- An outcome is yielded after the ledger has it on disk. A stop, a kill or an error loses nothing: the next caller on
  the folder goes on.
- TeacherError: what no later request would escape (refused key, unknown model, unreachable endpoint, `max_cost_usd`
  reached); what was under way is awaited and recorded first. ConfigError: no key, no price. RunFolderError: the ledger
  is damaged, of another version, or another process has it.
"""
