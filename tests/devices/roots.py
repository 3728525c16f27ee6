"""Made-up file system roots: the files of /proc and /sys that `devices` reads."""

from __future__ import annotations

from pathlib import Path

from llamaswap_py.devices.host import INITIAL_PID_NAMESPACE

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


class Root:
    """A machine of 64 GiB, 40 of them available, on which tests place processes and cards."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.memory(64 * GIB, 40 * GIB)
        self.container(False)

    def write(self, name: str, text: str | bytes) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def memory(self, total: int, available: int) -> None:
        self.write(
            "proc/meminfo",
            f"MemTotal: {total // KIB} kB\nMemFree: 1 kB\nMemAvailable: {available // KIB} kB\n",
        )

    def container(self, inside: bool) -> None:
        link = self.path / "proc/self/ns/pid"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to("pid:[4026532999]" if inside else INITIAL_PID_NAMESPACE)

    def process(self, pid: int, parent: int = 1, name: str = "llama-server", **sizes: int) -> None:
        """Place a process; sizes are those of /proc/PID/status (RssAnon, …) in bytes."""
        self.write(f"proc/{pid}/stat", f"{pid} ({name}) S {parent} 1 1 0".encode("latin-1"))
        rows = [f"Name:\t{name}", *(f"{key}:\t{size // KIB} kB" for key, size in sizes.items())]
        self.write(f"proc/{pid}/status", "\n".join(rows).encode("latin-1"))

    def end(self, pid: int) -> None:
        folder = self.path / f"proc/{pid}"
        for path in sorted(folder.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        folder.rmdir()

    def drm_file(self, pid: int, number: int, bus: str, client: int, **sizes: int) -> None:
        rows = [f"drm-pdev:\t{bus}", f"drm-client-id:\t{client}", "pos:\t0"]
        rows += [f"drm-memory-{pool}:\t{size // KIB} KiB" for pool, size in sizes.items()]
        self.write(f"proc/{pid}/fdinfo/{number}", "\n".join(rows) + "\n")

    def card(
        self,
        number: int,
        bus: str,
        *,
        vendor: str = "0x1002",
        metrics: int | None = 1,
        **sizes: int,
    ) -> str:
        """Place a graphics card: `vram_total=…` and so on in bytes, `metrics` its format."""
        folder = f"sys/class/drm/card{number}/device"
        self.write(f"{folder}/vendor", vendor + "\n")
        self.write(f"{folder}/uevent", f"DRIVER=amdgpu\nPCI_SLOT_NAME={bus}\n")
        self.write(f"sys/class/drm/card{number}-HDMI-A-1/status", "connected\n")
        if metrics is not None:
            self.write(f"{folder}/gpu_metrics", bytes([120, 0, metrics, 3, 0, 0]))
        for name, size in sizes.items():
            self.write(f"{folder}/mem_info_{name}", f"{size}\n")
        return folder

    def agent(self, node: int, gpu_id: int, bus: str, unique_id: int = 0, cores: int = 0) -> None:
        """Place a node of the compute driver; one with `gpu_id` 0 is a CPU."""
        domain, bus_number, slot = bus.split(":")
        device, _, function = slot.partition(".")
        place = int(bus_number, 16) << 8 | int(device, 16) << 3 | int(function)
        folder = f"sys/class/kfd/kfd/topology/nodes/{node}"
        self.write(f"{folder}/gpu_id", f"{gpu_id}\n")
        self.write(
            f"{folder}/properties",
            f"cpu_cores_count {cores}\nlocation_id {place}\ndomain {int(domain, 16)}\n"
            f"unique_id {unique_id}\n",
        )
