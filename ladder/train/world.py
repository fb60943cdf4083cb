"""The processes that train together: who they are, and what they agree on.

`torchrun` tells each process who it is by its environment, and so do SLURM's `srun` and Open MPI's
`mpirun`. Without any of them there is one process, and no process group at all.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import torch
from torch import Tensor
from torch import distributed as dist

from ladder.errors import SaidByTheFirst, UserError, WorkFailed

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

# Names of rank, rank on the machine, and number of processes, by launcher. Of SLURM those of the
# step: a batch script's own shell is no process of many, whatever the job has.
LAUNCHERS = (
    ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
)
PORT = "29500"  # where the first process listens, if nobody says
PATIENCE = timedelta(minutes=30)  # for a process that evaluates, or writes, while others wait
PAUSE = 0.2  # seconds until a process looks whether the first one has answered


class World(NamedTuple):
    """The processes that train together, seen from one of them.

    Attributes:
        rank: Number of this process.
        size: How many there are.
        local: Number of this process on its machine.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes, and speaks, for all."""
        return self.rank == 0

    def counted(self, n: int, of: int) -> int:
        """How many of this process's `n` data count, in a batch of `of` for all processes.

        All, but where the batch has none for this process, which then computes on somebody else's
        so as to keep step.
        """
        return n if self.rank < of else 0


def found(environment: Mapping[str, str] = os.environ) -> World:
    """Who this process is, as its launcher says.

    Args:
        environment: Environment variables.

    Returns:
        The world; a single process if no launcher speaks.

    Raises:
        UserError: If what the launcher says is no number, or does not fit together.
    """
    for rank, local, size in LAUNCHERS:
        if rank not in environment or size not in environment:
            continue
        said = {name: environment.get(name, "0") for name in (rank, size, local)}
        for name, value in said.items():
            if not value.isdecimal():
                raise UserError(f"{name}: '{value}' is no number; start with torchrun")
        world = World(*map(int, said.values()))
        if world.rank >= world.size:
            raise UserError(
                f"{rank}: {world.rank} should be below {size}, which is {world.size}; "
                "start with torchrun"
            )
        return world
    return World()


@contextmanager
def joined(world: World, device: torch.device) -> Iterator[None]:
    """Be one of the processes inside the block; gloo on the CPU, nccl on GPUs.

    Args:
        world: Who this process is; alone it joins nothing.
        device: Where it trains.

    Raises:
        UserError: If nobody says where the first process listens.
    """
    if world.size == 1:
        yield
        return
    address = os.environ.get("MASTER_ADDR") or os.environ.get("SLURM_LAUNCH_NODE_IPADDR")
    if address is None:
        raise UserError(
            "MASTER_ADDR: not said, so the processes cannot meet; start with torchrun, or set it "
            "to the first machine's address"
        )
    os.environ["MASTER_ADDR"] = address
    os.environ.setdefault("MASTER_PORT", PORT)
    # gloo as well, for words between hosts that should not wait for a GPU.
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(
        backend, store=met(world), rank=world.rank, world_size=world.size, timeout=PATIENCE
    )
    try:
        yield
        # Nobody leaves before the one who writes has written.
        dist.barrier()
    finally:
        dist.destroy_process_group()


def met(world: World) -> Store:
    """Where the processes that are alive now, and only those, leave word for each other.

    torchrun keeps its store when it starts everybody again, and with it the addresses of the dead;
    how often it has done so is not the same number on all machines. So the first process names
    the room, and the name counts once that process has answered.

    Args:
        world: The processes.

    Returns:
        A room of the store that the launcher's variables name.
    """
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", world.rank, world.size, timeout=PATIENCE))
    own = uuid4().hex
    if world.leads:
        store.set("room", own)
        for rank in range(1, world.size):
            store.set(store.get(f"{own}/{rank}").decode(), "heard")
        return PrefixStore(own, store)
    while True:  # the name that is there may be one of an earlier life
        room = store.get("room").decode()
        store.set(f"{room}/{world.rank}", own)
        time.sleep(PAUSE)
        if store.check([own]):
            return PrefixStore(room, store)


def left_alone(error: RuntimeError, step: int, world: World) -> Exception:
    """What to raise for an error while training: a sentence, if another process has ended."""
    if world.size == 1 or not re.search(
        "gloo|nccl|connection|timed out", str(error), re.IGNORECASE
    ):
        return error
    return WorkFailed(
        f"step {step + 1}: another process ended, or could not be heard; all go on from the last "
        "checkpoint if they are started again with train.resume=auto"
    )


def agreed(value: Any, world: World) -> Any:
    """What the first process says, plain values only."""
    if world.size == 1:
        return value
    said = [value]
    dist.broadcast_object_list(said, src=0)
    return said[0]


def led(work: Callable[[], None], world: World) -> None:
    """Let the first process do something; where it cannot, all of them end with its sentence.

    Args:
        work: What to do.
        world: The processes.

    Raises:
        UserError: If it raised one; for the others a `SaidByTheFirst`.
    """
    sentence = None
    try:
        if world.leads:
            work()
    except UserError as error:
        sentence = str(error)
    sentence = agreed(sentence, world)
    if sentence is not None:
        raise UserError(sentence) if world.leads else SaidByTheFirst(sentence)


def gathered(value: Any, world: World) -> list[Any]:
    """What each process says, by rank, for all of them; plain values and CPU tensors only."""
    if world.size == 1:
        return [value]
    said: list[Any] = [None] * world.size
    dist.all_gather_object(said, value)
    return said


def summed(values: Tensor, world: World) -> Tensor:
    """The sum over all processes, without gradient; the device is not waited for."""
    if world.size > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


class Consensus:
    """What the processes agree to stop for, a step late, so that no step waits for the word.

    Args:
        world: The processes.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.asked: tuple[Tensor, Any] | None = None

    def of(self, code: int | None) -> int | None:
        """Say why this process would stop, and hear what all of them said a step ago.

        Args:
            code: An exit code, or `None` to go on.

        Returns:
            The largest code that one of them gave at the step before; alone, one's own.
        """
        if self.world.size == 1:
            return code
        heard = 0
        if self.asked is not None:
            word, work = self.asked
            work.wait()
            heard = int(word.item())
        word = torch.tensor(code or 0)
        self.asked = word, dist.all_reduce(word, dist.ReduceOp.MAX, async_op=True)
        return heard or None
