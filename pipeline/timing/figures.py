"""Figures of speed: trials of policies turned into rows of measured numbers and the bounds that they are held to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.benching.stopwatch import timed
from pipeline.benching.trial import kv_bytes
from pipeline.benching.work import passes
from pipeline.engines.prompt import prefilled
from pipeline.engines.snapshot import Snapshot
from pipeline.kv.policy import FULL
from pipeline.metrics.measure import measure
from pipeline.timing import trials
from pipeline.timing.record import Record, above, of_blocks, tpot
from pipeline.timing.settings import Settings
from pipeline.timing.trials import Case, Engines, Open, Prefill

FLASH = {False: "off", True: "on"}
DECODED = ("snapkv", "streaming_llm", "kv_q8_0")
COMPRESSED = ("snapkv", "pyramidkv", "knorm", "tova", "h2o")
SCORED = ("h2o_online", "tova_online", "scissorhands", "treekv")
NARROWED = {"fastkv": 0.65, "gemfilter": 0.75}  # most of full KV's prefill time
ONLINE = ("streaming_llm", "h2o_online", "tova_online")
ONLINE_MOST = 0.45
PROMPT_SLACK = 255  # prompts are fed in blocks of one more: in small ones a token takes 1.6 times as long
COMPRESSION_MOST = 0.02  # of the prefill's time
STEP_MOST = 12.0  # percent above a step over the same cells without scores
NARROWED_BUDGET = 0.1  # of the prompt
HANDED_OVER = ("full", "snapkv")  # all entries, and few
QUERIES = 32  # that any policy here wants to see of a prompt
WARM_UP = 64  # tokens beyond the budget, with which everything has run once


def planned(settings: Settings) -> int:
    """Return how many rows there will be."""
    decoded = (len(settings.depths) + len(settings.encodings) - 1) * (2 + len(DECODED))
    steps = len(step_slacks(settings)) * (1 + 2 * len(SCORED))
    prompts = len(depths(settings)) + len(settings.shallow)
    return decoded + steps + prompts + len(COMPRESSED) + len(NARROWED) + len(ONLINE) + len(HANDED_OVER) + 1


def depths(settings: Settings) -> list[int]:
    """Return all depths at which a prompt is prefilled."""
    return sorted({*settings.depths, *settings.shallow})


def step_slacks(settings: Settings) -> list[int]:
    """Return the slacks of step figures: the papers' cut at every token, and the setting."""
    return sorted({0, settings.slack})


@dataclass(frozen=True)
class Figures:
    """The figures of one model in its first encoding; ``others`` are its files in further ones."""

    engines: Engines
    others: Mapping[str, Path]
    ids: Sequence[int]
    settings: Settings
    record: Record

    def all(self) -> None:
        """Measure everything, steps first, then depth by depth, so that one long prompt is in memory at a time."""
        self._warm_up()
        for slack in step_slacks(self.settings):
            self.steps(slack)
        for depth in depths(self.settings):
            self._depth(depth)

    def steps(self, slack: int) -> None:
        """Time a token under policies that score, beside the same cells, cuts and positions without scores.

        Recipes with a slack of their own keep it.
        """
        own = self.settings if slack else replace(self.settings, tokens=self.settings.few)
        scored = [self._case(name, slack) for name in SCORED]
        cases = [self._case("full"), *(one for case in scored for one in (case.unscored, case))]
        with ExitStack() as opening:
            streams = {}
            for case in cases:
                one = opening.enter_context(trials.opened(self.engines, case, own.budget, own.decoded + slack + 1))
                one.stream.feed(self.ids[: own.budget + (slack + 1 if case.policy.decode else 0)])
                streams[case.name] = one.stream
            times = trials.decode(streams, self.ids, own)
        for case in cases:
            cutting = above(times[case.name], times["full"])
            self.record.add(
                f"step over {own.budget} entries, slack {slack}: {case.name} "
                f"{of_blocks(times[case.name]):.1f} ms a token, {cutting:+.1f} % beside no cuts",
                **self._row("step", case, own.budget),
                **tpot(times[case.name]),
                overhead_to_full=measure(cutting, n=own.blocks, unit="%", better="lower"),
            )
        for case in scored:
            what = f"step of {case.name} over {own.budget} entries, slack {slack}, above the same cells without scores"
            self.record.bound(what, above(times[case.name], times[case.unscored.name]), STEP_MOST, "%")

    def decoding(self, prompt: Snapshot, engines: Engines, encoding: str) -> None:
        """Time tokens after a long prompt: full KV with flash attention off and on, beside policies."""
        own, depth = self.settings, prompt.seen
        full = [Case("full", FULL, flash) for flash in FLASH]
        cases = [*full, *map(self._case, DECODED)]
        memory = {}
        with ExitStack() as opening:
            streams = {}
            for case in cases:
                one = opening.enter_context(trials.opened(engines, case, depth, own.decoded))
                one.stream.take(trials.stored_as(prompt, case.policy.precision))
                streams[case] = one.stream
                memory[case] = self._memory(one, case)
            times = trials.decode(streams, self.ids, own)
        best = min((times[case] for case in full), key=of_blocks)
        for case in cases:
            ratio = np.median(best.mean(1) / times[case].mean(1))
            row = self._row("decode", case, depth) | {"encoding": encoding}
            self.record.add(
                f"decode at {depth}, {encoding}: {case.name}, flash attention {row['flash_attention']}, "
                f"{of_blocks(times[case]):.1f} ms a token, {ratio:.2f} x full KV",
                **row,
                **tpot(times[case]),
                ratio_to_full=measure(ratio, n=own.blocks, unit="x full KV", better="higher"),
                **memory[case],
            )

    def compression(self, prompt: Prefill) -> None:
        """Time the cuts at a long prompt's end against its prefill."""
        depth = prompt.snapshot.seen
        for case in map(self._case, COMPRESSED):
            own = prompt
            if case.policy.running:  # it watches every row of the prefill, which is then another one
                own = trials.prefill(self.engines.off, self.ids[:depth], QUERIES, case.policy.running)
            with trials.opened(self.engines, case, depth, 1) as one:
                took = trials.take(one, own.snapshot, self.settings.takes)
                memory = self._memory(one, case)
            spent = {"read": own.read, "choose": took.seconds - took.write, "write": took.write}
            share = sum(spent.values()) / own.seconds
            self.record.add(
                f"compression at {depth}: {case.name} {1e3 * sum(spent.values()):.0f} ms ("
                + ", ".join(f"{name} {1e3 * seconds:.0f}" for name, seconds in spent.items())
                + f"), {100 * share:.2f} % of its prefill's {own.seconds:.1f} s",
                **self._row("compression", case, depth),
                **{f"{name}_s": measure(seconds, unit="s", better="lower") for name, seconds in spent.items()},
                prefill_s=measure(own.seconds, n=1, unit="s", better="lower"),
                share=measure(share, n=self.settings.takes, unit="of prefill", better="lower"),
                **memory,
            )
            what = f"compression of {case.name} at {depth}, share of its prefill"
            self.record.bound(what, share, COMPRESSION_MOST, "of prefill")

    def narrowed(self, full: Prefill) -> None:
        """Time prompts that are narrowed on the way against a whole one."""
        depth = full.snapshot.seen
        budget = int(NARROWED_BUDGET * depth)
        for name, most in NARROWED.items():
            case = self._case(name, budget=budget)
            prefilled(self.engines.on, self.ids[: budget + WARM_UP], case.policy)
            _, seconds = timed(prefilled, self.engines.on, self.ids[:depth], case.policy)
            self._prefilled(case, "narrowed", seconds, full, most)

    def online(self, full: Prefill) -> None:
        """Time prompts that are fed under the budget against a whole one."""
        depth = full.snapshot.seen
        for case in (self._case(name, PROMPT_SLACK) for name in ONLINE):
            with trials.opened(self.engines, case, depth, 0) as one:
                _, seconds = timed(one.stream.feed, self.ids[:depth])
            self._prefilled(case, "online", seconds, full, ONLINE_MOST)

    def resident(self, prompt: Snapshot, case: Case) -> int:
        """Tell what a policy's cache and its context hold in memory; return the bytes of the whole process."""
        before = trials.resident_bytes()
        with trials.opened(self.engines, case, prompt.seen, self.settings.decoded) as one:
            one.stream.take(prompt)
            one.stream.feed(self.ids[:1])
            memory = self._memory(one, case)
            held = trials.resident_bytes()
        grown = held - before
        self.record.add(
            f"memory at {prompt.seen}: {case.name} holds {memory['kv_bytes']['value'] / 1e6:.0f} MB of keys and "
            f"values, its context {grown / 1e6:.0f} MB of RSS",
            **self._row("memory", case, prompt.seen),
            **memory,
            rss_context=measure(grown, n=1, unit="bytes", better="lower"),
        )
        return held

    def _handed_over(self, one: Open, case: Case, depth: int, before: int) -> None:
        """Tell how far the process's memory falls when nothing but a policy's cache is left of a prompt."""
        after = trials.resident_bytes()
        self.record.add(
            f"memory after {depth} tokens were handed over to {case.name}: RSS falls by "
            f"{(before - after) / 1e6:.0f} MB to {after / 1e6:.0f} MB, models and their parts among them",
            **self._row("handed over", case, depth),
            **self._memory(one, case),
            rss_before=measure(before, n=1, unit="bytes", better="lower"),
            rss_after=measure(after, n=1, unit="bytes", better="lower"),
        )

    def _depth(self, depth: int) -> None:
        """Prefill one prompt and measure everything that starts from it."""
        own = self.settings
        prompt = self._flash(depth)
        if depth in own.depths:
            self.decoding(prompt.snapshot, self.engines, own.encodings[0])
        if depth == max(own.shallow):
            self.narrowed(prompt)
        if depth == own.deepest:
            for encoding, path in self.others.items():
                with trials.loaded(path, self.engines.on.threads) as engines:
                    self.decoding(prompt.snapshot, engines, encoding)
            self.compression(prompt)
            self.online(prompt)
            full, small = map(self._case, HANDED_OVER)
            held = self.resident(prompt.snapshot, full)
            self.resident(prompt.snapshot, small)
            with trials.opened(self.engines, small, depth, 1) as one:
                one.stream.take(prompt.snapshot)
                del prompt
                self._handed_over(one, small, depth, held)

    def _flash(self, depth: int) -> Prefill:
        """Return a prompt prefilled with flash attention; at shallow depths time it without, too."""
        settings = (False, True) if depth in self.settings.shallow else (True,)
        for flash in settings:
            made = trials.prefill(self.engines.of(flash), self.ids[:depth], QUERIES if flash else 0)
            self.record.add(
                f"prefill of {depth}, flash attention {FLASH[flash]}: {made.seconds:.1f} s",
                **self._row("prefill", Case("full", FULL, flash), depth),
                seconds=measure(made.seconds, n=1, unit="s", better="lower"),
            )
        return made

    def _prefilled(self, case: Case, figure: str, seconds: float, full: Prefill, most: float) -> None:
        depth, layers = full.snapshot.seen, self.engines.on.shape.layers
        ratio, computed = seconds / full.seconds, sum(passes(case.policy, layers, depth)) / (layers * depth)
        self.record.add(
            f"prefill of {depth}: {case.name} {seconds:.1f} s, {ratio:.2f} of full KV's, "
            f"with {computed:.2f} of its layers x tokens computed",
            **self._row(figure, case, depth),
            seconds=measure(seconds, n=1, unit="s", better="lower"),
            ratio=measure(ratio, n=1, unit="of full KV", better="lower"),
            computed=measure(computed, unit="of layers x tokens", better="lower"),
        )
        self.record.bound(f"prefill of {case.name} at {depth}, share of full KV's", ratio, most, "of full KV")

    def _warm_up(self) -> None:
        """Prefill and decode a little with both engines: the first time pays for pages and threads."""
        for flash in FLASH:
            prompt = trials.prefill(self.engines.of(flash), self.ids[: self.settings.budget + WARM_UP])
            with trials.opened(self.engines, Case("full", FULL, flash), prompt.snapshot.seen, 1) as one:
                one.stream.take(prompt.snapshot)
                one.stream.feed(self.ids[:1])

    def _case(self, name: str, slack: int | None = None, budget: int | None = None) -> Case:
        """Return a policy at the settings' budget and slack, or at others."""
        own = self.settings
        slack = own.slack if slack is None else slack
        return Case.of(name, budget or own.budget, slack, self.engines.on.shape.layers)

    def _row(self, figure: str, case: Case, depth: int) -> dict:
        quantised = case.policy.precision.quantised
        return {
            "figure": figure,
            "encoding": self.settings.encodings[0],
            "policy": case.name,
            "depth": depth,
            "budget": case.policy.budget,
            "slack": case.policy.slack if case.policy.decode else None,
            "flash_attention": FLASH[quantised or (case.flash and not case.policy.running)],
        }

    def _memory(self, one: Open, case: Case) -> dict:
        accounted = kv_bytes(self.engines.on, case.policy.precision, one.stream.lives)
        return {
            "kv_bytes": measure(one.cache.kv_bytes(), unit="bytes", better="lower"),
            "kv_bytes_accounted": measure(accounted, unit="bytes", better="lower"),
            "state_bytes": measure(one.stream.state_bytes(), unit="bytes", better="lower"),
        }
