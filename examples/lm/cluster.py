"""The processes of a distributed run: which there are, and how they find each other."""

import dataclasses
import socket
import time

import jax

from lm import UsageError


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Where the processes are; without address and numbers JAX finds out by itself, if it can."""

    coordinator: str | None = None
    """Address HOST:PORT of process 0."""
    processes: int | None = None
    """Number of processes."""
    process: int | None = None
    """Number of this process, from 0."""
    local: int | None = None
    """Starts so many processes on this machine; two or more share its CPU."""
    wait: int = 60
    """Seconds to wait for the other processes at the start."""
    heartbeat: int = 15
    """Seconds after which a silent process counts as dead."""

    def check(self) -> None:
        """Raises a UsageError for values that cannot work."""
        for name in ("local", "processes", "wait", "heartbeat"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} {value}: must be at least 1")
        missing = [x is None for x in (self.coordinator, self.processes, self.process)]
        if self.local is not None and not all(missing):
            raise UsageError(
                f"--local {self.local}: starts all processes on this machine; leave it out, or "
                "--coordinator, --processes and --process"
            )
        if any(missing) and not all(missing):
            raise UsageError(
                "--coordinator, --processes, --process: give all three, or none where JAX finds "
                "the cluster by itself"
            )
        if self.coordinator is None or self.processes is None or self.process is None:
            return
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal():
            raise UsageError(f"--coordinator {self.coordinator}: must be HOST:PORT")
        if not 0 <= self.process < self.processes:
            raise UsageError(
                f"--process {self.process}: must be from 0 to {self.processes - 1}, for "
                f"--processes {self.processes}"
            )

    def workers(self) -> "list[Cluster]":
        """The processes to be started here."""
        if self.local is None:
            return [self]
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        return [
            dataclasses.replace(self, coordinator=address, processes=self.local, process=number)
            for number in range(self.local)
        ]

    def connect(self) -> None:
        """Makes this process one of them. Nothing of JAX may have run in it."""
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        if self.local is not None and self.local > 1:
            jax.config.update("jax_platforms", "cpu")
        if self.coordinator is not None and self.process:
            self._wait_for(self.coordinator)
        try:
            jax.distributed.initialize(
                self.coordinator,
                self.processes,
                self.process,
                initialization_timeout=self.wait,
                heartbeat_timeout_seconds=self.heartbeat,
                cluster_detection_method="deactivate" if self.local else None,
            )
        except ValueError as error:  # what JAX did not find
            raise UsageError(
                f"no cluster: {error} On one machine use --local, else --coordinator, --processes "
                "and --process"
            ) from error
        except RuntimeError as error:
            raise UsageError(
                f"--coordinator {self.coordinator or ''}: {error}; if its port is taken, "
                "choose another"
            ) from error

    def _wait_for(self, address: str) -> None:
        """Until process 0 listens: JAX would abort this process, were it not to come."""
        host, _, port = address.rpartition(":")
        deadline = time.monotonic() + self.wait
        while True:
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=self.wait).close()
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise UsageError(
                        f"--coordinator {address}: nothing answered within {self.wait} s "
                        f"({error}); start process 0 on that host, or correct the address"
                    ) from error
                time.sleep(0.2)
