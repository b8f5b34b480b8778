"""recipes/quantize/<encoding>.yaml as values: how one encoding is made, by which family of formats."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from pipeline import recipes
from pipeline.schema import Section


class Recipe(Section):
    """What every encoding has."""

    family: str
    summary: str  # one line, as `python -m pipeline list` prints it


class GgufRecipe(Recipe):
    """A GGUF file for llama.cpp."""

    family: Literal["gguf"]
    file_type: str  # llama.cpp's name of the mixture of tensor types: F16, Q8_0, Q4_K_M ...


class CompressedRecipe(Recipe):
    """A compressed-tensors directory for transformers and vLLM, made by llm-compressor."""

    family: Literal["compressed"]
    modifier: Literal["quantization", "gptq"]  # plain rounding, or GPTQ's (Frantar et al., 2022)
    scheme: str  # compressed-tensors' preset: FP8_DYNAMIC, W4A16, W4A8, W8A8 ...
    ignore: tuple[str, ...]  # modules that keep their precision
    group_size: Annotated[int, Field(gt=0)] | None = None  # weights that share a scale; None: the preset's
    dampening: Annotated[float, Field(gt=0, lt=1)] | None = None  # GPTQ: share of the mean Hessian diagonal added to it
    format: str | None = None  # layout on disk, such as pack-quantized; None: the one the scheme implies

    @model_validator(mode="after")
    def _dampening_is_of_gptq(self) -> CompressedRecipe:
        if (self.dampening is None) != (self.modifier != "gptq"):
            raise ValueError("modifier 'gptq' needs dampening, and no other takes it")
        return self


class _Family(Section):
    """The key that says which recipe the other keys belong to."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    family: Literal["gguf", "compressed"]


RECIPES: dict[str, type[Recipe]] = {"gguf": GgufRecipe, "compressed": CompressedRecipe}


def read(encoding: str) -> Recipe:
    """Read the recipe of an encoding; raise ConfigError if there is none or it does not fit its family."""
    family = recipes.read("quantize", encoding, _Family).family
    return recipes.read("quantize", encoding, RECIPES[family])
