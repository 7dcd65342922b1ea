"""The time shift: any schedule with its clock moved towards the noise.

    t' = shift·t/(1 + (shift − 1)t)

For rectified flow this lowers the log-SNR by 2·log(shift) everywhere, as a picture of shift² times
the pixels needs to lose as much of its coarse structure. The model is told t', the time of the
schedule that it was trained with; so a shift needs no training, and a model trained with one shift
can be sampled with another.

Source: Esser et al., arXiv 2403.03206, §5.3.2; Hoogeboom et al., arXiv 2301.11093.
"""

from dataclasses import dataclass

from ropewalk.blocks.checks import require_positive
from ropewalk.blocks.diffusion.checks import Time, as_time, described
from ropewalk.blocks.diffusion.schedule.schedule import Schedule, Times


@dataclass(frozen=True)
class Shifted(Schedule):
    """A schedule read at the shifted time.

    Attributes:
        schedule: the schedule that is shifted.
        shift: above 1 spends more of the time at high noise, 1 changes nothing.

    Raises:
        TypeError: the schedule is not a `Schedule`, or the shift is not a number.
        ValueError: the shift is not above 0.
    """

    schedule: Schedule
    shift: float = 3.0

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, Schedule):
            raise TypeError(
                f"Shifted.schedule: expected a Schedule, got {described(self.schedule)}"
            )
        require_positive("Shifted", shift=self.shift)

    def model_time(self, t: Time) -> Times:
        """The shifted time, as the schedule inside tells it."""
        return self.schedule.model_time(self._moved(as_time(t)))

    def _moved(self, t: Times) -> Times:
        # Exactly 1 at t = 1, where the quotient may round to above it.
        return (self.shift * t / (1 + (self.shift - 1) * t)).clamp(max=1.0)

    def _speed(self, t: Times) -> Times:
        return self.shift / (1 + (self.shift - 1) * t).square()

    def _alpha(self, t: Times) -> Times:
        return self.schedule.alpha(self._moved(t))

    def _sigma(self, t: Times) -> Times:
        return self.schedule.sigma(self._moved(t))

    def _alpha_derivative(self, t: Times) -> Times:
        return self.schedule.alpha_derivative(self._moved(t)) * self._speed(t)

    def _sigma_derivative(self, t: Times) -> Times:
        return self.schedule.sigma_derivative(self._moved(t)) * self._speed(t)

    def _log_snr(self, t: Times) -> Times:
        return self.schedule.log_snr(self._moved(t))

    def _time_at(self, log_snr: Times) -> Times:
        moved = self.schedule.time_at(log_snr)
        return moved / (self.shift - (self.shift - 1) * moved)
