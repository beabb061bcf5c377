"""Configurations that fit limits of parameters, memory and time, best first.

Candidates are ranked by the study: by the share of full fine-tuning's mask AP that they reach, mean over its sets.
Candidates without a result follow. Among equals, fewer trained parameters are better. The recipes of `candidates.py`
are tried as they are, and then with activation checkpointing, which changes no gradients. If none fits, batches of one
image are accumulated, and at last the image is made smaller, which has a warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from vispeft import peft
from vispeft.config import Config
from vispeft.engine.attach import attach
from vispeft.engine.build import build_base
from vispeft.engine.estimation import candidates
from vispeft.engine.estimation.base_model import Base, base_without_weights
from vispeft.engine.estimation.candidates import Candidate
from vispeft.engine.estimation.estimate import Estimate, estimate_attached
from vispeft.engine.estimation.evidence import results_of, share_of_full
from vispeft.engine.estimation.limits import Limits
from vispeft.engine.estimation.step_time import Timing, time_step
from vispeft.engine.weights_source import NONE, PRETRAINED
from vispeft.errors import ConfigError, PlanError, VispeftError
from vispeft.models.bundled import BUNDLED
from vispeft.training.memory import available_memory_bytes

MOST_PROPOSALS = 5


@dataclass(frozen=True)
class Proposal:
    """A configuration that fits. seconds: of training, without evaluations; None where no time limit was given"""

    name: str
    reason: str
    overrides: tuple[str, ...]
    estimate: Estimate
    seconds: float | None


@dataclass(frozen=True)
class Proposals:
    """Configurations that fit, best first, and the measurement behind their times."""

    limits: Limits
    found: tuple[Proposal, ...]
    timing: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, for a JSON file."""
        found = [{**vars(each), "estimate": each.estimate.to_dict()} for each in self.found]
        return {"limits": asdict(self.limits), "timing": self.timing, "proposals": found}


@dataclass(frozen=True)
class _Mode:
    """Settings that save memory, and the sentence that explains them."""

    overrides: tuple[str, ...] = ()
    note: str = ""
    recomputes: bool = False
    batch_size: int | None = None
    image_size: int | None = None


class NothingFitsError(VispeftError):
    """No configuration fits the limits."""


def propose(config: Config, limits: Limits) -> Proposals:
    """Return the best configurations within the limits. Raises NothingFitsError where there is none."""
    search = _Search(base_without_weights(config), limits)
    for modes in _rounds(search.base.config):
        found = search.fitting(modes)
        if found:
            return Proposals(limits, tuple(found), search.timing_text)
    raise NothingFitsError(search.failure())


def _rounds(config: Config) -> Iterator[Sequence[_Mode]]:
    """Yield groups of modes, of which a later one is tried only if nothing fits an earlier one."""
    recompute = "model.activation_checkpointing=true"
    recomputed = _Mode((recompute,), "Activation checkpointing: the same gradients, more time.", recomputes=True)
    plain = _Mode(recomputes=config.model.activation_checkpointing)
    yield (plain,) if plain.recomputes else (plain, recomputed)
    train, side = config.train, config.model.image_size or 0
    if train.batch_size > 1:
        number = train.batch_size * train.accumulate
        words = (recompute, "train.batch_size=1", f"train.accumulate={number}")
        note = "Batches of 1 image, accumulated, with activation checkpointing: the same images a step, more time."
        yield (_Mode(words, note, recomputes=True, batch_size=1),)
    for size in (side * 3 // 4, side // 2):
        size -= size % 32
        if size >= 64:
            words = (recompute, "train.batch_size=1", f"train.accumulate={train.batch_size * train.accumulate}")
            note = f"Warning: images of {size} px instead of {side} px show less detail, and small objects suffer most."
            yield (_Mode((*words, f"model.image_size={size}"), note, True, 1, size),)


class _Search:
    """Candidates of one base, ranked, with what was found of them so far."""

    def __init__(self, base: Base, limits: Limits) -> None:
        self.base = base
        self.limits = limits
        self.timing: Timing | None = None
        self.timed_flops = 0.0
        self.smallest: list[tuple[float, str]] = []
        self.has_new_decoder = base.config.model.weights in (PRETRAINED, NONE)
        self.is_bundled = base.config.model.weights == BUNDLED
        listed = candidates.NEW_DECODER if self.has_new_decoder else candidates.PRETRAINED
        counted = [(each, params) for each in listed if (params := self._count(each)) is not None]
        self.ranked = sorted(counted, key=lambda pair: (*self._evidence_rank(pair[0]), pair[1]))

    @property
    def timing_text(self) -> str:
        """Sentence about the measurement of time; empty without one."""
        if self.timing is None:
            return ""
        return (
            f"A step of {self.timing.batch_size} images took {self.timing.seconds:.2f} s here (measured in "
            f"{self.timing.measuring_seconds:.0f} s). Times are scaled from it by FLOPs, to "
            f"{self.base.config.train.steps} steps, without evaluations."
        )

    def fitting(self, modes: Sequence[_Mode]) -> list[Proposal]:
        """Return the best candidates that fit, each in the first mode in which it does."""
        found: list[Proposal] = []
        modes = [mode for mode in modes if self._may_fit(mode)]
        for candidate, params in self.ranked:
            if len(found) == MOST_PROPOSALS:
                break
            for mode in modes:
                if (proposal := self._tried(candidate, params, mode)) is not None:
                    found.append(proposal)
                    break
        return found

    def failure(self) -> str:
        """Return the message for limits that nothing fits."""
        if not self.smallest:
            params, name = min((params, candidate.name) for candidate, params in self.ranked)
            total = peft.count(self.base.model).total
            return (
                f"No configuration fits {self.limits}. The smallest is {name} with {params:,} trained parameters, "
                f"{100 * params / total:.2f} % of {total:,}. Raise `--budget` to that."
            )
        excess, text = min(self.smallest)
        return (
            f"No configuration fits {self.limits}. Nearest is {text}, {excess:.1f} times the limit. Raise the limit, "
            "or choose a smaller `model.backbone`, `model.image_size` or `train.steps`."
        )

    def _evidence_rank(self, candidate: Candidate) -> tuple[int, float]:
        if self.has_new_decoder:
            return (1, 0.0)
        share = 1.0 if candidate.is_full else share_of_full(candidate.variant)
        return (1, 0.0) if share is None else (0, -share)

    def _config(self, candidate: Candidate, mode: _Mode) -> Config:
        config = self.base.config
        peft_config = config.peft.model_copy(update={"deltas": dict(candidate.deltas), "train": candidate.train})
        model = config.model.model_copy(
            update={
                "activation_checkpointing": mode.recomputes,
                "image_size": mode.image_size or config.model.image_size,
            }
        )
        batch_size = mode.batch_size or config.train.batch_size
        accumulate = config.train.accumulate * config.train.batch_size // batch_size
        train = config.train.model_copy(update={"batch_size": batch_size, "accumulate": accumulate})
        return config.model_copy(update={"peft": peft_config, "model": model, "train": train})

    def _count(self, candidate: Candidate) -> int | None:
        """Return the trained parameters of a candidate; None if the model lacks its sites."""
        try:
            attach(self.base.model, self._config(candidate, _Mode()))
        except PlanError:
            return None
        params = peft.count(self.base.model).trainable
        peft.remove(self.base.model)
        return params

    def _attached(self, candidate: Candidate, mode: _Mode) -> Base:
        """Return a base with the candidate's deltas."""
        config = self._config(candidate, mode)
        model = build_base(config, self.base.num_classes, with_weights=False)
        attach(model, config)
        return replace(self.base, config=config, model=model)

    def _may_fit(self, mode: _Mode) -> bool:
        """Return False for a mode in which not even the smallest candidate without deltas fits memory and time."""
        candidate, _ = min(self.ranked, key=lambda pair: (bool(pair[0].deltas), pair[1]))
        base = self._attached(candidate, mode)
        estimate = estimate_attached(base)
        return self._fits(f"{candidate.name}{_bracketed(mode.note)}", estimate, self._seconds(base, estimate))

    def _tried(self, candidate: Candidate, params: int, mode: _Mode) -> Proposal | None:
        """Return the proposal of a candidate; None if it does not fit, or if the model cannot have it."""
        if not self.limits.allow_params(params, peft.count(self.base.model).total + params):
            return None
        base = self._attached(candidate, mode)
        try:
            estimate = estimate_attached(base)
        except PlanError:  # the sites are there, but get inputs of another form
            return None
        if not self.limits.allow_params(estimate.trainable_params, estimate.total_params):
            return None
        seconds = self._seconds(base, estimate)
        if not self._fits(f"{candidate.name}{_bracketed(mode.note)}", estimate, seconds):
            return None
        reason = " ".join(text for text in (self._reason(candidate), mode.note) if text)
        return Proposal(candidate.name, reason, self._overrides(candidate, mode), estimate, seconds)

    def _fits(self, name: str, estimate: Estimate, seconds: float | None) -> bool:
        """Return True within the limits of memory and time; otherwise record what would be needed."""
        if self.limits.memory is not None and estimate.process_bytes > self.limits.memory:
            needed = f"{name} with {estimate.process_bytes / 2**30:.2f} GB of memory"
            self.smallest.append((estimate.process_bytes / self.limits.memory, needed))
            return False
        if seconds is not None and self.limits.seconds is not None and seconds > self.limits.seconds:
            self.smallest.append((seconds / self.limits.seconds, f"{name} with {seconds / 60:.1f} min"))
            return False
        return True

    def _seconds(self, base: Base, estimate: Estimate) -> float | None:
        """Return the seconds of training, from a step of the first candidate; None without a limit of time."""
        if self.limits.seconds is None:
            return None
        train = base.config.train
        if self.timing is None:
            available = available_memory_bytes()
            if available is not None and estimate.peak_bytes > available:
                raise ConfigError(
                    f"`--time` times a step here, which needs {estimate.peak_bytes / 2**30:.1f} GB of memory, but only "
                    f"{available / 2**30:.1f} GB are free. Give `--memory` too, or a smaller `model.image_size`."
                )
            self.timing = time_step(base, estimate.step_flops)
            self.timed_flops = estimate.step_flops * self.timing.batch_size / train.batch_size
        step = self.timing.seconds * estimate.step_flops / self.timed_flops
        return step * train.accumulate * (train.steps or 0)

    def _reason(self, candidate: Candidate) -> str:
        """Return the results of the study for a candidate."""
        if candidate.is_full and not self.has_new_decoder:
            return "The study compares all others with it."
        results = () if self.has_new_decoder else results_of(candidate.variant)
        if not results:
            return "The project's study has no result for this configuration; ranked by its parameters."
        sources = ", ".join(result.source for result in results)
        reason = (
            f"Mask AP of the bundled base, {results[0].seeds} seeds: {'; '.join(map(str, results))}. Raw: {sources}."
        )
        return reason if self.is_bundled else f"{reason} The base of this configuration is another."

    def _overrides(self, candidate: Candidate, mode: _Mode) -> tuple[str, ...]:
        """Return the words for the command line that make the configuration this one."""
        return (
            f"peft.deltas={_flow(dict(candidate.deltas))}",
            f"peft.train={_flow(list(candidate.train))}",
            *(f"train.methods.{method}.lr={rate:g}" for method, rate in candidate.rates.items() if self.is_bundled),
            *mode.overrides,
        )


def _bracketed(note: str) -> str:
    return f" ({note.rstrip('.')})" if note else ""


def _flow(value: Any) -> str:
    """Return YAML on one line, without single quotes, so that a shell takes it in single quotes."""
    match value:
        case dict():
            return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(_flow, value)) + "]"
        case str():
            return value if value.isidentifier() else f'"{value}"'
    return str(value)
