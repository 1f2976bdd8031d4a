"""What paired scores say; pure numpy, and nothing here imports torch.

- `paired`: recovery with an interval, a verdict, and how many questions would settle it; questions may share passages.
- `mcnemar`: the exact test of right and wrong answers.
- `resampling`: bootstrap intervals of recovery.
- `independent`: a ratio of scores of different questions.
- `noise`: what an engine changes by itself when it is asked again.
- `means`: how sure a mean of times is, or of scores.
- `families`: several tests read together.
- `settling`: a verdict that may be looked at after every batch of questions.

The methods, their sources and their limits are in docs/statistics.md.
"""

from bitworth.statistics.families import holm
from bitworth.statistics.independent import independent_ratio
from bitworth.statistics.mcnemar import mcnemar_exact
from bitworth.statistics.means import mean_factor, mean_interval, share_interval
from bitworth.statistics.noise import noise_of
from bitworth.statistics.paired import (
    Z95,
    PairedRecovery,
    mean_recovery,
    paired_recovery,
    ratio_interval,
    verdict_of,
)
from bitworth.statistics.resampling import bootstrap_recovery
from bitworth.statistics.settling import Settlement, settle

__all__ = [
    "Z95",
    "PairedRecovery",
    "Settlement",
    "bootstrap_recovery",
    "holm",
    "independent_ratio",
    "mcnemar_exact",
    "mean_factor",
    "mean_interval",
    "mean_recovery",
    "noise_of",
    "paired_recovery",
    "ratio_interval",
    "settle",
    "share_interval",
    "verdict_of",
]
