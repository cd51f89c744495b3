"""Every exception that verigym raises on purpose, one class per boundary."""

import difflib
from collections.abc import Iterable


class VerigymError(Exception):
    """Base of all: its message is one line that says what is wrong, where, and what to do."""


class UnknownNameError(VerigymError):
    """A name (task set, verifier, option, split, field) that is not registered or not accepted."""

    @classmethod
    def of(cls, kind: str, name: str, known: Iterable[str]) -> "UnknownNameError":
        """`no verifier 'maths'; did you mean 'math'?`, or the first known names when none is near."""
        names, name = sorted(known), name[:200]  # a name may be a model's output, of any length
        near = difflib.get_close_matches(name, names, n=1)
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names[:20]) or 'none'}{more}"
        return cls(f"no {kind} '{name}'; {hint}")


class TaskDataError(VerigymError):
    """A task source that is missing or holds a row that cannot become a task."""


class VerifierInputError(VerigymError):
    """A gold answer or a task that a verifier cannot judge against (never the submission's fault)."""


class SandboxError(VerigymError):
    """A sandbox that is missing or unsafe here, a job that it cannot take, or a session that has ended."""


class ToolServerError(VerigymError):
    """A server of tools that cannot be started, has ended or gives no answer."""


class EnvUsageError(VerigymError):
    """An environment used outside its contract: wrong action type, step before reset or after the end."""


class EnvClosedError(VerigymError):
    """An environment that was closed while a call was waiting in it."""


class EnvLostError(VerigymError):
    """An environment that was lost with its worker on a cluster: its episode can be played again."""


class ConformanceError(VerigymError, AssertionError):
    """An environment that breaks a rule that every environment keeps to."""


class SnapshotError(VerigymError):
    """A snapshot that does not belong to this environment or replays differently."""


class TemplateError(VerigymError):
    """A chat template with which multi-turn episodes cannot be built token-exactly."""


class EngineError(VerigymError):
    """A rollout engine that refuses a model or a request."""


class EndpointError(VerigymError):
    """An endpoint that cannot be reached, refuses, or answers something else than a turn."""


class ContextOverflow(EndpointError):  # noqa: N818 - an end of the conversation rather than a mistake
    """A conversation, and the tokens asked for, do not fit into the context of the endpoint's model."""


class SyncError(VerigymError):
    """A rollout engine that does not follow the learner's weights."""


class ConfigError(VerigymError):
    """A run configuration that is wrong or contradicts itself."""


class RunError(VerigymError):
    """A run that had to stop: too many infrastructure errors, non-finite gradients, a broken run folder."""


class RunInterrupted(VerigymError):  # noqa: N818 - an interruption by the user is no error
    """A run ended by the user; its checkpoint is written and `--resume` goes on from it."""
