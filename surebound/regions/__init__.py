"""Where an input may be: regions with a closed-form minimum of a linear map."""

from surebound.regions.ball import LpBall
from surebound.regions.box import Box
from surebound.regions.region import Region

__all__ = ["Box", "LpBall", "Region"]
