"""Learning-rate schedules: pure functions of the step, so that a resume needs no scheduler state."""

import math

from jobs.spec.train import Constant, Cosine, OneCycle, Schedule, StepDecay


def rate(schedule: Schedule, peak: float, step: int, total_steps: int) -> float:
    """The learning rate of step `step` (0 … total_steps - 1), at most `peak`."""
    progress = step / total_steps
    if progress < schedule.warmup:
        rise = (step + 1) / (math.ceil(schedule.warmup * total_steps) + 1)
        if isinstance(schedule, OneCycle):
            return peak * _cosine(schedule.start_factor, 1.0, rise)
        return peak * rise
    fall = (progress - schedule.warmup) / (1.0 - schedule.warmup)
    match schedule:
        case Constant():
            return peak
        case StepDecay(milestones=milestones, gamma=gamma):
            return peak * gamma ** sum(progress >= milestone for milestone in milestones)
        case Cosine(floor=floor):
            return peak * _cosine(1.0, floor, fall)
        case OneCycle(end_factor=end_factor):
            return peak * _cosine(1.0, end_factor, fall)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1.0 + math.cos(math.pi * share)) / 2.0
