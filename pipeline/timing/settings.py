"""What `make speed` times: depths, entries, slack, and how often."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What is timed. Prefill at the greatest depth takes most of the time, so it is timed once: n is 1."""

    model: str = "Qwen3-0.6B-random"
    encodings: tuple[str, ...] = ("Q4_0", "Q4_K_M")  # the first: all figures; others: decoding at the greatest depth
    depths: tuple[int, ...] = (4096, 8192)  # of decoding; prefill also at a quarter and a half of the greatest
    budget: int = 512
    slack: int = 32
    tokens: int = 33  # of a block, so that at this slack a cut falls into each
    blocks: int = 5
    warmup: int = 4  # tokens before the first block
    takes: int = 3  # repetitions of a cut at the prompt's end

    @property
    def deepest(self) -> int:
        """The greatest depth."""
        return max(self.depths)

    @property
    def shallow(self) -> tuple[int, int]:
        """The depths at which flash attention on and off are compared for prefill."""
        return self.deepest // 4, self.deepest // 2

    @property
    def few(self) -> int:
        """Tokens of a block where every token is cut after: all take alike, and long."""
        return max(1, self.tokens // 4)

    @property
    def decoded(self) -> int:
        """Tokens that each stream decodes."""
        return self.warmup + self.tokens * self.blocks
