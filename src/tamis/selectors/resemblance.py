"""What selectors that compare texts by their shingles have in common."""

from typing import Any, Self

from pydantic import Field, model_validator

from tamis.scoring.minhash import MinHashSignature
from tamis.scoring.operator import Operator
from tamis.scoring.words import UnicodeForm, Unit
from tamis.selectors.banding import Banding


class Resemblance(Operator):
    """Two texts resemble each other from an exact Jaccard similarity of their shingle sets on."""

    threshold: float = Field(
        default=0.8, gt=0, le=1, description="exact Jaccard similarity of a duplicate"
    )
    ngram: int | None = Field(
        default=None, ge=1, description="tokens per shingle; 5 words or 24 characters if not given"
    )
    unit: Unit = Field(default="word", description="what a token is")
    unicode_form: UnicodeForm = Field(
        default="NFKD", description="decomposition before full case folding of non-ASCII rows"
    )
    num_perm: int = Field(default=128, ge=16, le=256, description="permutations of a signature")
    bands: int | None = Field(
        default=None, ge=1, description="bands of a signature; from the threshold, 25 at .8"
    )
    band_rows: int | None = Field(
        default=None, ge=1, description="signature values a band; from the threshold, 5 at .8"
    )
    seed: int = Field(default=1, ge=0, lt=2**32, description="seed of the permutations")

    @model_validator(mode="after")
    def _bands_fit(self) -> Self:
        if (self.bands is None) != (self.band_rows is None):
            raise ValueError("give both bands and band_rows, or neither")
        needed = self.banding.bands * self.banding.rows
        if needed > self.num_perm:
            raise ValueError(
                f"bands x band_rows = {needed} is more than the {self.num_perm} permutations"
            )
        return self

    def key_parts(self) -> dict[str, Any]:
        return {**super().key_parts(), "signal": self.signal.key_parts()}

    @property
    def banding(self) -> Banding:
        """Bands as given, or such that a pair at the threshold hardly ever fails to meet."""
        if self.bands is None or self.band_rows is None:
            return Banding.finer_than(self.threshold, self.num_perm)
        return Banding(self.bands, self.band_rows)

    @property
    def signal(self) -> MinHashSignature:
        """The signature that its texts are compared by."""
        return MinHashSignature(
            ngram=self.ngram,
            unit=self.unit,
            unicode_form=self.unicode_form,
            num_perm=self.num_perm,
            seed=self.seed,
        )
