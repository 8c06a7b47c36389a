"""Memory, huge pages and limits of the host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from memplat.backends.hugetlb.pool import Pool
from memplat.backends.memfd import HugePages, huge_decision
from memplat.doctor.findings import Finding, State
from memplat.engine import placement
from memplat.linux import numa, offers, system
from memplat.ranges import GIB, format_size

_MEMORY: Final = "memory"
_HUGE: Final = "huge pages"
_LIMITS: Final = "limits"

#: What a pool is made of when nobody says how large it should be, and what swap is proposed.
_POOL_BYTES: Final = GIB
_SWAP_REMEDY: Final = "fallocate -l 4G /swapfile && chmod 600 /swapfile && mkswap /swapfile && swapon /swapfile"
_STRICT: Final = 2


def examine_host() -> Iterator[Finding]:
    """All of it."""
    yield _ram()
    yield _swap()
    yield _overcommit()
    yield _nodes()
    yield from _pools()
    yield _hugetlbfs()
    yield from _transparent()
    yield from _cgroups()
    yield _address_space()
    yield _locking()


def _ram() -> Finding:
    host = system.host_memory()
    available = format_size(host.available) if host.available else "an unknown part"
    says = f"{format_size(host.ram)}, {available} of it available"
    return Finding(_MEMORY, "RAM", State.GOOD, says, data={"total": host.ram, "available": host.available})


def _swap() -> Finding:
    host, areas = system.host_memory(), offers.swaps()
    data = {"total": host.swap, "free": host.swap_free, "areas": [area._asdict() for area in areas]}
    if not host.swap:
        says = "none: what does not fit into RAM is killed, never slow"
        return Finding(_MEMORY, "swap", State.LIMITED, says, _SWAP_REMEDY, data)
    where = ", ".join(area.path for area in areas) or "unknown"
    says = f"{format_size(host.swap)}, {format_size(host.swap_free)} free, in {where}"
    return Finding(_MEMORY, "swap", State.GOOD, says, data=data)


def _nodes() -> Finding:
    nodes = numa.nodes_with_memory()
    says = "unknown" if nodes is None else f"with memory: {', '.join(map(str, nodes))}"
    return Finding(_MEMORY, "NUMA nodes", State.GOOD, says, data={"nodes": nodes})


def _overcommit() -> Finding:
    found = offers.overcommit()
    data = found._asdict()
    if found.mode == _STRICT:
        limit = "unknown" if found.limit is None else format_size(found.limit)
        says = f"never (vm.overcommit_memory = 2): beyond {limit} a first touch of a memfd is SIGBUS"
        return Finding(_MEMORY, "overcommit", State.LIMITED, says, "sysctl vm.overcommit_memory=0", data)
    words = {0: "heuristic", 1: "always", None: "unknown"}
    says = words.get(found.mode, str(found.mode))
    if found.mode is not None:
        says += f" (vm.overcommit_memory = {found.mode})"
    return Finding(_MEMORY, "overcommit", State.GOOD, says, data=data)


# ---- huge pages ------------------------------------------------------------------------------------------------------


def _pools() -> Iterator[Finding]:
    pools = system.huge_page_pools()
    if not pools:
        says = "none, or unknown: nothing in /sys/kernel/mm/hugepages (CONFIG_HUGETLBFS)"
        yield Finding(_HUGE, "pools", State.MISSING, says)
    for size, pool in pools.items():
        data = pool._asdict() | {"available": pool.available, "default": size == system.default_huge_page_size()}
        described = Pool(size)
        name = f"pool of {format_size(size)}"
        if pool.available:
            yield Finding(_HUGE, name, State.GOOD, described.figures(), data=data)
        else:
            remedy = described.remedy(max(1, _POOL_BYTES // size))
            yield Finding(_HUGE, name, State.MISSING, described.figures(), remedy, data)


def _hugetlbfs() -> Finding:
    mounts = offers.hugetlbfs_mounts()
    says = ", ".join(mounts) if mounts else "not mounted, and not needed: without the option mount a memfd is used"
    return Finding(_HUGE, "hugetlbfs", State.GOOD, says, data={"mounts": mounts})


def _transparent() -> Iterator[Finding]:
    """One finding for each way that the backend memfd can be told to take them; the decision is the backend's."""
    found = offers.transparent_huge_pages()
    settings = f"enabled = {found.enabled or 'unknown'} (anonymous memory only), shmem_enabled = {found.shmem_enabled}"
    if found.shmem_2m:
        settings += f", of 2 MiB = {found.shmem_2m}"
    known = State.GOOD if found.shmem_enabled else State.MISSING
    says = (
        f'{settings}; so "{found.effective}" is what counts for memfds' if found.shmem_enabled else "none, or unknown"
    )
    yield Finding(_HUGE, "transparent", known, says, data=found._asdict())
    for wanted in (HugePages.ADVISE, HugePages.COLLAPSE):
        effective, reason, remedy = huge_decision(wanted)
        data = {"wanted": wanted.value, "effective": effective.value}
        state = State.GOOD if effective is wanted else State.LIMITED
        says = f"{effective.value}, {reason.removeprefix(f'though {wanted} is configured: ')}"
        yield Finding(_HUGE, f'memfd with huge = "{wanted.value}"', state, says, remedy, data)


# ---- limits ----------------------------------------------------------------------------------------------------------


def _cgroups() -> Iterator[Finding]:
    levels = system.memory_cgroups()
    if not levels:
        yield Finding(_LIMITS, "memory cgroup", State.GOOD, "none", data={"limit": None, "levels": []})
        return
    bounded = [level for level in levels if level.limit is not None]
    data = {
        "limit": min((level.limit for level in bounded if level.limit is not None), default=None),
        "headroom": system.read_cgroup_headroom(),
        "levels": [level._asdict() | {"directory": str(level.directory)} for level in levels],
    }
    if not bounded:
        used = next((level.used for level in levels if level.used is not None), 0)
        says = f"{levels[0].directory}: no limit, {format_size(used)} used"
        yield Finding(_LIMITS, "memory cgroup", State.GOOD, says, data=data)
        return
    tightest = min(bounded, key=lambda level: (level.limit or 0) - (level.used or 0))
    yield _limited(tightest, data)


def _limited(level: system.CgroupMemory, data: Mapping[str, object]) -> Finding:
    limit, used = level.limit or 0, level.used or 0
    says = f"{level.directory}: {format_size(limit)}, {format_size(used)} used; beyond it the OOM killer comes"
    file = "memory.max" if (level.directory / "memory.max").exists() else "memory.limit_in_bytes"
    remedy = f"echo {system.host_memory().ram} > {level.directory / file}  # systemd: MemoryMax=, docker: --memory"
    return Finding(_LIMITS, "memory cgroup", State.LIMITED, says, remedy, data)


def _address_space() -> Finding:
    limit = system.address_space_limit()
    if limit is None:
        return Finding(_LIMITS, "address space", State.GOOD, "no limit (RLIMIT_AS)", data={"limit": None})
    says = f"{format_size(limit)} (RLIMIT_AS): a memory reserves max_size of it, and makes do with less"
    return Finding(_LIMITS, "address space", State.LIMITED, says, "ulimit -v unlimited", {"limit": limit})


def _locking() -> Finding:
    limit, left = offers.locked_memory_limit(), placement.lockable()
    data = {"limit": limit, "left": left}
    if limit is None or left is None:
        exempt = "" if limit is None else f"; {format_size(limit)} does not bind those with CAP_IPC_LOCK"
        return Finding(_LIMITS, "locked memory", State.GOOD, f"no limit (RLIMIT_MEMLOCK{exempt})", data=data)
    says = f"{format_size(limit)} (RLIMIT_MEMLOCK), {format_size(left)} left: that much can be had with lock"
    return Finding(_LIMITS, "locked memory", State.LIMITED, says, "ulimit -l unlimited", data)


__all__ = ["examine_host"]
