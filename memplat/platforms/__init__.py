"""Address spaces: where :meth:`Memory.map_into` can map pages. Each does the same, in another kind of guest."""

from memplat.platforms.child import Window
from memplat.platforms.host import HostSpace
from memplat.platforms.kvm import KvmSpace
from memplat.platforms.process import ProcessSpace
from memplat.platforms.space import Mapped, Space
from memplat.platforms.unicorn import UnicornSpace
from memplat.platforms.vcpu import Vcpu

__all__ = ["HostSpace", "KvmSpace", "Mapped", "ProcessSpace", "Space", "UnicornSpace", "Vcpu", "Window"]
