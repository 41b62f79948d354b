"""What training draws at random: dropout, the negatives of an auxiliary loss, stochastic rounding."""

import numpy as np
import torch


def seed_draws(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Have a rank draw in the step after `step` what it would have drawn had the run never been broken off.

    The generators begin every step anew, so no checkpoint needs their states. Ranks draw different numbers.
    """
    number = int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(number)
