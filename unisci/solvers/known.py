"""An answer that a denoiser has given already, as a Denoise: so one evaluation serves several solvers or terms."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unisci.batch import Schema
from unisci.state import State, Time

if TYPE_CHECKING:
    from unisci.solvers.sample import Denoise


@dataclass(frozen=True, eq=False)
class Known:
    """A Denoise that answers `clean` where it is asked at the state x, and as `elsewhere` at any other.

    x: the very object, as comparing its values would wait for the device; None, where it is asked at one state alone.
    Raises RuntimeError where it is asked elsewhere and `elsewhere` is None.
    """

    process: Any
    schema: Schema | None
    clean: State
    x: State | None = None
    elsewhere: Callable[[State, Time], State] | None = None

    @classmethod
    def of(cls, denoise: "Denoise", clean: State) -> "Known":
        """What `denoise` has answered, at whatever state it will be asked."""
        return cls(denoise.process, denoise.schema, clean)

    def __call__(self, x: State, t: Time) -> State:
        if self.x is None or x is self.x:
            return self.clean
        if self.elsewhere is None:
            raise RuntimeError(
                "the prediction is known at one state alone, and another was asked for; inside Together a solver "
                "evaluates the denoiser once per step, at the state it is given"
            )
        return self.elsewhere(x, t)
