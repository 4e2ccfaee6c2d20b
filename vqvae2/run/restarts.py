"""Restarts by torchrun or `accelerate launch` (--max-restarts), which otherwise hang.

The launcher keeps one store for all its attempts. After a restart, the processes would find there the addresses of
those that have ended, and wait for them (seen with PyTorch 2.14; pytorch/pytorch#135712 reports the same of NCCL).
"""

import os

from vqvae2.errors import UserError

LAUNCHERS_STORE = "TORCHELASTIC_USE_AGENT_STORE"
LARGEST_PORT = 65_535


def use_fresh_store() -> None:
    """After a restart on one node, make process 0 open a store of its own; call it before the processes are joined.

    Each launcher counts its own restarts, so the processes of several nodes could not agree on another port.

    Raises:
        UserError: restarts of several nodes are asked for, but the launchers would keep their store.
    """
    restarts, most = (int(os.environ.get(f"TORCHELASTIC_{x}", "0")) for x in ("RESTART_COUNT", "MAX_RESTARTS"))
    if os.environ.get(LAUNCHERS_STORE) != "True" or most == 0:
        return
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        raise UserError(
            f"--max-restarts {most}: a restart on several nodes would hang: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 "
            "for torchrun with --rdzv-backend c10d on all nodes, or use --max-restarts 0"
        )
    if restarts:
        os.environ[LAUNCHERS_STORE] = "False"
        first = int(os.environ["MASTER_PORT"])
        os.environ["MASTER_PORT"] = str(first + restarts if first + restarts <= LARGEST_PORT else first - restarts)
