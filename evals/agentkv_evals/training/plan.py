"""What is trained when: stages with their share of the time, their rows and their learning rate."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agentkv_evals.worlds.lessons import Level


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stretch of training. `batches` are the (rows, tokens) shapes drawn in turn, one of the levels' each."""

    share: float
    levels: tuple[Level, ...]
    batches: tuple[tuple[int, int], ...]
    rate: tuple[float, float]


def _level(tokens: int, depth_cap: int, new_share: float = 0.3, extras: float = 0.75, roles: float = 0.3) -> Level:
    return Level(tokens=tokens, depth_cap=depth_cap, new_share=new_share, extras=extras, roles=roles)


_SMALL, _MEDIUM, _WIDE, _LARGE, _HUGE = (64, 256), (32, 512), (48, 512), (16, 1024), (4, 4096)
PEAK = 7e-4
_ROLES_256, _ROLES_512, _ROLES_1024 = (_level(tokens, 4, roles=0.5) for tokens in (256, 512, 1024))

_MIDDLE = Stage(
    share=1.0,
    levels=(_level(256, 4), _level(512, 4), _level(512, 4)),
    batches=(_SMALL, _WIDE, _WIDE, _WIDE),
    rate=(PEAK, PEAK),
)
_FINISH = Stage(
    share=0.7,
    levels=(_ROLES_256, _ROLES_512, _ROLES_512, _ROLES_1024),
    batches=(_SMALL, _WIDE, _MEDIUM, _WIDE, _LARGE, _LARGE),
    rate=(PEAK, 3e-4),
)
_LONG = Stage(
    share=0.3,
    levels=(_ROLES_256, _ROLES_512, _ROLES_1024, _level(4096, 4)),
    batches=(_SMALL, _WIDE, _WIDE, _LARGE, _LARGE, _HUGE),
    rate=(3e-4, 0.0),
)

PLANS: dict[str, tuple[Stage, ...]] = {
    "start": (
        Stage(share=0.05, levels=(_level(256, 1, 0, 0.1, 0.1),), batches=(_SMALL,), rate=(PEAK, PEAK)),
        Stage(share=0.10, levels=(_level(256, 2, 0, 0.2, 0.2),), batches=(_SMALL,), rate=(PEAK, PEAK)),
        Stage(share=0.15, levels=(_level(256, 3, 0, 0.4),), batches=(_SMALL,), rate=(PEAK, PEAK)),
        Stage(share=0.30, levels=(_level(256, 4, 0.2),), batches=(_SMALL,), rate=(PEAK, PEAK)),
        Stage(
            share=0.40,
            levels=(_level(256, 4), _level(512, 4)),
            batches=(_SMALL, _MEDIUM, _MEDIUM),
            rate=(PEAK, PEAK),
        ),
    ),
    "middle": (_MIDDLE,),
    "finish": (_FINISH, _LONG),
    "extend": (replace(_MIDDLE, share=0.55), replace(_FINISH, share=0.25), replace(_LONG, share=0.2)),
    "smoke": (
        Stage(share=0.5, levels=(_level(256, 1),), batches=((2, 256),), rate=(PEAK, PEAK)),
        Stage(share=0.5, levels=(_level(256, 4), _level(512, 4)), batches=((2, 256), (1, 512)), rate=(PEAK, 0.0)),
    ),
}
"""`start`, `middle`, `finish` and `extend` are pieces of at most ten minutes on one H100 or H200; each resumes from the
weights of the one before. `extend` teaches what the worlds gained since: `middle` and `finish` again, in one piece.
"""
