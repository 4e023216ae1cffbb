"""What there is once: a copy of a lease would give its connection back a second time, to two borrowers at once."""

from __future__ import annotations

from typing import NoReturn

__all__ = ["Uncopied"]


class Uncopied:
    """Refuses `copy.copy`, `copy.deepcopy` and pickling, with what to do instead."""

    __slots__ = ()

    _instead = "make another one"

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError(f"{type(self).__name__} can't be copied or pickled: {self._instead}")

    __copy__ = _refuse
    __deepcopy__ = _refuse
    __reduce__ = _refuse
    __reduce_ex__ = _refuse
