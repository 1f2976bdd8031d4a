"""What a roofline does not know: a few constants with a physical meaning, fitted on the paper's tables 5 and 6.

`FITTED` is what `bitworth.prediction.fitting.fit` finds on every cell that is not a printing defect; how far such
constants stray on (model size, GPU) pairs that they have not seen is in `SPREADS`. docs/prediction.md has the figures.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """Fractions of a peak are in (0, 1]; cycles are those of a chip's greatest clock.

    - bandwidth_share: of the maker's memory bandwidth that streaming weights and cache reaches.
    - block_kilocycles: a decoder block's kernels starting, filling the chip and draining, beside the streaming.
    - rounding_kilocycles: more of that a block where activations are rounded before each product (W8A8).
    - unpack_gb_s: bytes of 4-bit weights that one multiprocessor turns into 16 bits a second; what its few loads in
      flight bring in bounds it, not the clock.
    - compute16_share, compute8_share: of the maker's dense rate that long prompts reach, 16-bit and 8-bit arithmetic.
    - stage_s: handing a token from one machine's pipeline stage to the next, network and driver together.

    Under load (table 6):

    - serving16_share, serving8_share: of the dense rate that full batches reach, in place of compute16/8_share.
    - host_s: work of the server's own processor for each running sequence a pass (scheduling, sampling, answers).
    """

    bandwidth_share: float
    block_kilocycles: float
    rounding_kilocycles: float
    unpack_gb_s: float
    compute16_share: float
    compute8_share: float
    stage_s: float
    serving16_share: float
    serving8_share: float
    host_s: float


FITTED = Constants(
    bandwidth_share=0.8764,
    block_kilocycles=169.5,
    rounding_kilocycles=49.43,
    unpack_gb_s=15.25,
    compute16_share=0.5063,
    compute8_share=0.4456,
    stage_s=0.00500,
    serving16_share=0.8059,
    serving8_share=0.6386,
    host_s=0.0001043,
)
#: Share of a link's rate that a ring all-reduce of large messages reaches; not fitted, the tables do not resolve it.
LINK_SHARE = 0.8
#: 90 % of the predictions for held-out (model size, GPU) pairs lie within a factor exp(spread) of the printed figure.
SPREADS = {"synchronous": 0.081, "throughput": 0.325}
